"""`bnas show`: one network as a table with its costs, and as a drawing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError, unknown

from .. import runs
from ..console import output, result, say
from . import settings
from .spaces import CLASSES, IMAGE, IMAGES, parse_image, sized_by_image
from .train import found_architecture

if TYPE_CHECKING:
    from bnas.drawing.parts import Part
    from bnas.profiles.table import LatencyTable
    from bnas.profiles.workload import Workload
    from bnas.search.spaces import Architecture, SearchSpace


def show(
    arch: str | None = typer.Argument(
        None,
        help="An architecture .yaml, a run, a reference network (bnas spaces lists them), or with --random or "
        "--genotype a space (default: the newest run).",
        show_default=False,
    ),
    random: int | None = typer.Option(None, "--random", help="A random network of the space, from this seed."),
    genotype: str | None = typer.Option(None, "--genotype", help="A genotype as DARTS prints it, or a file of one."),
    space: str | None = typer.Option(None, "--space", help="Space of --random or --genotype (default: ARCH or cells)."),
    image: str | None = IMAGE,
    classes: int | None = CLASSES,
    profile: str | None = typer.Option(None, "--profile", help="Also predict the latency by this profile."),
    svg: Path | None = typer.Option(None, "--svg", help="Drawing to write (default: NAME.svg, RUN/architecture.svg)."),
    as_json: bool = settings.JSON,
) -> None:
    """Print a network unit by unit with its costs, and draw it.

    Example: bnas show bireal18, or: bnas show cells:cifar --random 7 --profile rpi4b
    """
    with result(as_json) as emit:
        shown = find(arch, random=random, genotype=genotype, space=space, image=image, classes=classes)
        table = None if profile is None else _latency_table(profile)
        path = svg or shown.svg
        if path.suffix != ".svg":
            raise InputError(f"--svg {path} must end with .svg")
        if not path.parent.is_dir():
            raise InputError(f"--svg {path}: there is no folder {path.parent}; make it first")
        document = describe(shown, table)
        _draw(shown, document, path)
        emit({**document, "svg": str(path)}, lambda: _show(shown, document, table))
        say(f"drawing: {path}")


@dataclass(frozen=True)
class Shown:
    """A network that was asked for. svg: where it is drawn unless told otherwise."""

    name: str
    space: SearchSpace
    arch: Architecture
    svg: Path


def find(
    arch: str | None,
    *,
    random: int | None = None,
    genotype: str | None = None,
    space: str | None = None,
    image: str | None = None,
    classes: int | None = None,
) -> Shown:
    """The network that the options name. Raises InputError if they name none."""
    from bnas.search.spaces import SPACES, reference, space_of
    from bnas.search.spaces.references import REFERENCES

    shape = None if image is None else parse_image(image)
    if random is not None or genotype is not None:
        if random is not None and genotype is not None:
            raise InputError("--random and --genotype name two networks; give one of them")
        if arch and space:
            raise InputError(f"{arch!r} and --space {space!r} name two spaces; give one of them")
        text = space or arch or "cells"
        the_space = _space(text, shape, classes)
        chosen = _random(the_space, random) if random is not None else _genotype(the_space, str(genotype))
        end = f"random {random}" if random is not None else "genotype"
        return Shown(f"{text}, {end}", the_space, chosen, Path(f"{_file_name(f'{text}-{end}')}.svg"))
    if space is not None:
        raise InputError(f"--space {space!r} needs --random SEED or --genotype TEXT to say which of its networks")
    if arch in REFERENCES:
        usual_shape, usual_classes = IMAGES["imagenet"]
        with sized_by_image():
            chosen = reference(arch, shape or usual_shape, usual_classes if classes is None else classes)
        return Shown(arch, space_of(chosen.space), chosen, Path(f"{arch}.svg"))
    if shape or classes is not None:
        raise InputError("--image and --classes go with a reference network, --random or --genotype")
    if arch is not None and (Path(arch).is_file() or Path(arch).suffix in (".yaml", ".yml")):
        chosen = _read(Path(arch))
        return Shown(arch, _space_of(chosen), chosen, Path(f"{Path(arch).stem}.svg"))
    if arch is not None and not Path(arch).exists() and not (runs.ROOT / arch).exists():
        if arch.partition(":")[0] in SPACES:
            raise InputError(f"{arch!r} is a space; say which of its networks with --random SEED")
        known = [run.parent.name for run in runs.ROOT.glob("*/run.yaml")]
        raise unknown("run or reference network", arch, [*REFERENCES, *known])
    run = runs.find(arch)
    chosen = found_architecture(run)
    return Shown(str(run.folder), _space_of(chosen), chosen, run.path("architecture.svg"))


def _space(text: str, shape: tuple[int, int, int] | None, classes: int | None) -> SearchSpace:
    """By its id, which says all, or by name, instance and options for the image given or the instance's usual one."""
    from bnas.search.spaces import make_space, space_of

    if re.search(r":\d+x\d+x\d+:", text):
        if shape or classes is not None:
            raise InputError(f"{text!r} says its image and classes; leave out --image and --classes")
        return space_of(text)
    instance = next((name for name in IMAGES if name in text.split(":")[1:]), "imagenet")
    usual_shape, usual_classes = IMAGES[instance]
    with sized_by_image():
        return make_space(text, shape or usual_shape, usual_classes if classes is None else classes)


def _random(space: SearchSpace, seed: int) -> Architecture:
    import numpy as np

    if seed < 0:
        raise InputError(f"--random {seed} must be 0 or more")
    return space.random(np.random.default_rng(seed))


def _genotype(space: SearchSpace, text: str) -> Architecture:
    from bnas.search.spaces import cells

    if space.name != "cells":
        raise InputError(f"--genotype goes with the space cells, not with {space.id!r}")
    if "Genotype" not in text:  # that no file name holds a whole genotype is what tells them apart
        path = Path(text)
        if not path.is_file():
            raise InputError(
                f"--genotype: there is no file {text!r}; give one, or the text Genotype(normal=[...], ...)"
            )
        text = _text(path)
    return cells.from_genotype(space, text)


def _read(path: Path) -> Architecture:
    from bnas.search.spaces import Architecture

    if not path.is_file():
        raise InputError(f"{path} does not exist; give an architecture.yaml that bnas search wrote")
    text = _text(path)
    try:
        return Architecture.from_yaml(text, str(path))
    except InputError:
        raise
    except (ValueError, RecursionError):  # a date of no calendar, brackets without end
        raise InputError(f"{path} is not an architecture; give an architecture.yaml that bnas search wrote") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file; give an architecture .yaml or a genotype") from None


def _space_of(arch: Architecture) -> SearchSpace:
    from bnas.search.spaces import space_of

    space = space_of(arch.space)
    space.check(arch)
    return space


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)


def _latency_table(profile: str) -> LatencyTable:
    from bnas.profiles.schema import load_profile
    from bnas.profiles.table import LatencyTable

    known = load_profile(profile)
    if reason := settings.outdated(known):
        raise InputError(f"profile {profile} was {reason}; measure again: {settings.rebuild(known)}")
    return LatencyTable(known)


def describe(shown: Shown, table: LatencyTable | None = None) -> dict:
    """The document of --json. activation_bytes: of the largest unit; latency: only with a table.

    A unit's `latency_ms` is its row in the table; the whole network's has what the runtime itself costs besides.
    """
    from bnas.profiles.cost import activation_bytes, binary_macs, macs, model_bytes, params
    from bnas.search.spaces import cells

    steps = shown.space.steps(shown.arch)
    workloads = [step.unit for step in steps]
    units = [
        {"key": step.unit.key, "name": step.name, "inputs": list(step.inputs), **asdict(step.unit)} for step in steps
    ]
    document = {
        "name": shown.name,
        "space": shown.space.id,
        **{count.__name__: sum(map(count, workloads)) for count in (macs, binary_macs, params, model_bytes)},
        "activation_bytes": max(map(activation_bytes, workloads)),
        "workloads": units,
        "architecture": shown.arch.to_dict(),
    }
    if shown.space.name == "cells":
        document["genotype"] = cells.genotype(shown.space, shown.arch)
    if table:
        for unit, workload in zip(units, workloads, strict=True):
            unit["latency_ms"] = table.lookup(workload).ms
        whole = table.predict(workloads)
        document["latency"] = {**asdict(whole), "text": str(whole), "profile": table.profile.name}
    return document


def _draw(shown: Shown, document: dict, path: Path) -> None:
    from bnas.drawing import draw
    from bnas.profiles import atomic

    facts = [f"{name}: {fact}" for name, fact in {"space": shown.space.id, **_facts(document)}.items()]
    atomic.write_text(path, draw(shown.space, shown.arch, shown.name, facts))


def _facts(document: dict) -> dict[str, str]:
    facts = {
        "operations": f"{document['macs']:,} MACs, {document['binary_macs']:,} of them 1-bit",
        "parameters": f"{document['params']:,} in {document['model_bytes']:,} bytes",
        "activations": f"{document['activation_bytes']:,} bytes read and written by the largest unit",
    }
    if latency := document.get("latency"):
        facts["predicted"] = f"{latency['text']} by {latency['profile']}"
    return facts


# The table: parts that are alike and follow one another are printed once, and so are equal units of one part.


@dataclass(frozen=True)
class Row:
    """Equal units: their part and what was chosen there or the cell's type (both empty where they are those above),
    their name in it, and how many there are in all."""

    part: str
    choice: str
    unit: str
    times: int
    workload: Workload


def rows(network: Sequence[Part]) -> Iterator[Row]:
    """What the table prints, from the image to the classes; every unit is counted in exactly one row."""
    for (choice, units), equal in groupby((part for part in network if part.steps), key=_contents):
        names = [part.name for part in equal]
        title = names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('.')[2]}"
        folded: dict[tuple[str, Workload], list[str]] = {}
        for name, workload in units:
            folded.setdefault((re.sub(r"\d+", "0", name), workload), []).append(name)
        for number, ((_, workload), own) in enumerate(folded.items()):
            yield Row("" if number else title, "" if number else choice, _pattern(own), len(names) * len(own), workload)


def _contents(part: Part) -> tuple[str, tuple[tuple[str, Workload], ...]]:
    return part.choice or part.group, tuple(
        (part.local(step).removeprefix(f"{part.choice}."), step.unit) for step in part.steps
    )


def _pattern(names: Sequence[str]) -> str:
    """What names have in common, level by level: edges.0_2.depth0 and edges.1_2.depth0 make edges.*.depth0."""
    levels = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(level[0] if len(set(level)) == 1 else f"{_beginning(level)}*" for level in levels)


def _beginning(texts: Sequence[str]) -> str:
    pairs = zip(min(texts), max(texts), strict=False)  # texts in between begin as these two do
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _show(shown: Shown, document: dict, table: LatencyTable | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from bnas.drawing.parts import parts
    from bnas.profiles.cost import macs, model_bytes, params
    from bnas.profiles.table import format_ms

    units = Table(title=f"{shown.name} ({shown.space.id})", box=None, padding=(0, 1), title_justify="left")
    for column in ("part", "choice", "unit"):
        units.add_column(column, no_wrap=True)
    for column in ("times", "kind", "input", "output", "window", "bits", "MACs", "params", "bytes"):
        units.add_column(column, no_wrap=True, justify="left" if column in ("kind", "window") else "right")
    if table:
        units.add_column("predicted", no_wrap=True, justify="right")
    for row in rows(parts(shown.space, shown.arch)):
        w, n = row.workload, row.times
        units.add_row(
            row.part, row.choice, row.unit, f"{n}×" if n > 1 else "", w.kind,
            f"{w.in_channels}×{w.height}×{w.width}", f"{w.out_channels}×{w.out_height}×{w.out_width}", _window(w),
            str(w.bits), *(_short(n * count(w)) for count in (macs, params, model_bytes)),
            *([format_ms(n * table.lookup(w).ms)] if table else []),
        )  # fmt: skip
    wide = Console(
        highlight=False, width=None if output.is_terminal else 200
    )  # in a file, lines are as long as they are
    wide.print(units)
    totals = Table(show_header=False)
    for name, fact in _facts(document).items():
        totals.add_row(name, fact)
    output.print(totals)
    if genotype := document.get("genotype"):
        output.print(genotype, markup=False, soft_wrap=True)


def _window(w: Workload) -> str:
    """3×3 /2 g4 d2: kernel, stride, groups and dilation where they are not 1."""
    if w.kernel == 1 and w.kind not in ("conv", "binary_conv"):
        return ""
    parts = (
        f"{w.kernel}×{w.kernel}",
        *(f"{m}{n}" for m, n in (("/", w.stride), ("g", w.groups), ("d", w.dilation)) if n > 1),
    )
    return " ".join(parts)


def _short(number: int) -> str:
    """Three significant digits: 1.68 G; empty for 0."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:
            return (f"{number / size:.3g}" if number < 999.5 * size else f"{number / size:.0f}") + unit
    return str(number) if number else ""
