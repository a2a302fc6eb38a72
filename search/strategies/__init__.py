"""Search methods by name. A method is one short file that fills the slots of its loop."""

from . import spos

STRATEGIES = {"spos": spos}
