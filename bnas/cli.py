"""The command line: commands are registered here, and every way to fail becomes one line and an exit code.

0 done, 2 bad input (the user can mend it), 1 failure, 130 interrupted.
"""

import errno
import os
from collections.abc import Iterator, Sequence

import typer

from bnas.profiles.errors import InputError
from bnas.runtime_bench.devices.errors import DeviceError

from . import __version__
from .commands.bench import bench
from .commands.demo import demo
from .commands.devices import devices
from .commands.export import export
from .commands.isometry import isometry
from .commands.pick import pick
from .commands.profiles import profiles
from .commands.report import report
from .commands.run import run as run_command
from .commands.search import search
from .commands.show import show
from .commands.spaces import spaces
from .commands.strategies import strategies
from .commands.train import train
from .console import errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Search, train, export and bench 1-bit networks that meet a latency budget on your device.",
    epilog="Example: bnas search --profile rtx3080 && bnas export --format tflite && bnas bench",
)
app.command()(search)
app.command()(pick)
app.command()(train)
app.command()(export)
app.command()(bench)
app.command("run")(run_command)
app.add_typer(profiles, name="profiles")
app.add_typer(devices, name="devices")
app.command()(report)
app.command()(show)
app.command()(spaces)
app.command()(strategies)
app.command()(isometry)
app.command()(demo)


def _version(show: bool) -> None:
    if show:
        print(f"bnas {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_DATABASE = ("database or disk is full", "disk I/O error")  # SQLite's words


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code. Nothing but the commands' own output and one line per error is printed."""
    try:
        code = app(list(arguments), standalone_mode=False) or 0
        return _interrupted() if code == 130 else code
    except InputError as error:
        return _fail(str(error), 2)
    except DeviceError as error:
        return _fail(str(error), 1)
    except typer.Exit as error:  # typer turns Ctrl-C into an exit with 130
        return _interrupted() if error.exit_code == 130 else error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except ModuleNotFoundError as error:
        if os.environ.get("BNAS_TRACEBACK"):
            raise
        return _fail(f"this command needs the package {error.name!r}: pip install 'bnas[all]'", 2)
    except OSError as error:
        if os.environ.get("BNAS_TRACEBACK"):
            raise
        place = f" {error.filename}" if error.filename else ""
        if error.errno in FULL:
            return _fail(f"no space left to write{place}; free some, and the same command continues", 1)
        return _fail(f"cannot use{place}: {error.strerror or error}; choose another path", 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of typer, whose classes are not public
            text = " ".join(error.format_message().split())
            if details := getattr(error.__cause__, "errors", None):  # pydantic's; typer leaves out what was typed
                text += f", got {details()[0]['input']!r}"
            return _fail(f"{text} (see --help)", 2) if text else 2  # no text: help was printed
        if any(reason in str(cause) for cause in _causes(error) for reason in FULL_DATABASE):
            return _fail("no space left to write the search database; free some, and the same command continues", 1)
        if os.environ.get("BNAS_TRACEBACK"):
            raise
        text = " ".join(str(error).split()) or "no message"
        return _fail(f"{type(error).__name__}: {text} (BNAS_TRACEBACK=1 shows where)", 1)


def _interrupted() -> int:
    return _fail("interrupted; the same command continues where it stopped", 130)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _fail(message: str, code: int) -> int:
    errors.print(f"error: {message}", style="red" if errors.is_terminal else None, markup=False)
    return code
