"""Search methods by name. A method is one short file that fills the slots of its loop."""

from . import bn_nas, di_nas, fairnas, one_shot, random_search, spos

STRATEGIES = {
    "random": random_search,
    "one-shot": one_shot,
    "spos": spos,
    "fairnas": fairnas,
    "bn-nas": bn_nas,
    "di-nas": di_nas,
}
