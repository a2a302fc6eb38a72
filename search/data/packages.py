"""Optional packages: an import that fails tells the user what to install, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from bnas.profiles.errors import InputError


@contextmanager
def needs(extra: str, package: str) -> Iterator[None]:
    """Around imports: a missing or broken `package` becomes an `InputError` naming the extra of bnas."""
    try:
        yield
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{package} cannot be imported ({reason}); pip install 'bnas[{extra}]'") from error
