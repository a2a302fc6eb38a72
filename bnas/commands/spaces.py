"""`bnas spaces`: what can be searched, how large it is, and the published networks that are known by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError

from ..console import output, result, say
from . import settings

if TYPE_CHECKING:
    from bnas.search.spaces import SearchSpace

Shape = tuple[int, int, int]  # channels, height, width

IMAGES: dict[str, tuple[Shape, int]] = {  # instance -> image and classes that are taken where none are given
    "micro": ((1, 8, 8), 10), "cifar": ((3, 32, 32), 10), "imagenet": ((3, 224, 224), 1000)
}  # fmt: skip
IMAGE = typer.Option(None, "--image", help="Image as CHANNELSxHEIGHTxWIDTH, e.g. 3x32x32 (default: by instance).")
CLASSES = typer.Option(None, "--classes", help="Number of classes (default: by instance).")


def spaces(image: str | None = IMAGE, classes: int | None = CLASSES, as_json: bool = settings.JSON) -> None:
    """The search spaces with their instances, options and sizes, and the reference networks.

    Example: bnas spaces --image 3x32x32
    """
    with result(as_json) as emit:
        document = do_spaces(None if image is None else parse_image(image), classes)
        emit(document, lambda: _show(document))


def parse_image(text: str) -> Shape:
    """`3x32x32`: channels, height, width. Raises InputError for anything else."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})x([0-9]{1,5})", text)
    if not match:
        raise InputError(f"--image {text!r} is not CHANNELSxHEIGHTxWIDTH; write for example 3x32x32")
    return int(match[1]), int(match[2]), int(match[3])


@contextmanager
def sized_by_image() -> Iterator[None]:
    """For commands whose image is that of --image: errors about its size name this option."""
    from bnas.search.spaces.options import ImageSizeError

    try:
        yield
    except ImageSizeError as error:
        raise InputError(f"{error.problem}; choose a size with --image") from None


def do_spaces(shape: Shape | None = None, classes: int | None = None) -> dict:
    """Every space and reference network; a space's own numbers are those of its imagenet instance.

    shape: list those instances only that take this image; a space's own numbers are then those of the instance that
    the image chooses. left_out: the spaces that do not take it at all, and why. Raises InputError if none does.
    """
    from bnas.search.spaces import SPACES
    from bnas.search.spaces.options import instance_for
    from bnas.search.spaces.references import REFERENCES

    listed = []
    left_out: dict[str, str] = {}
    for name, module in SPACES.items():
        instances = {}
        for instance, (usual_shape, usual_classes) in IMAGES.items():
            try:
                instances[instance] = _instance(
                    f"{name}:{instance}", shape or usual_shape, usual_classes if classes is None else classes
                )
            except InputError as error:
                refused = str(error)
        chosen = instance_for(shape) if shape else "imagenet"
        if not instances:
            left_out[name] = refused
        else:
            own = instances.get(chosen) or next(iter(instances.values()))
            about = " ".join((module.__doc__ or "").partition("\n\n")[0].partition(": ")[2].split())
            options = {option: list(values) or "a number" for option, values in module.OPTIONS.items()}
            listed.append({"name": name, "about": about, **own, "options": options, "instances": instances})
    if not listed:
        raise InputError(next(iter(left_out.values())))
    return {"spaces": listed, "left_out": left_out, "references": [_reference(name) for name in REFERENCES]}


def _instance(text: str, shape: Shape, classes: int) -> dict:
    from bnas.search.spaces import make_space

    with sized_by_image():
        space = make_space(text, shape, classes)
    least, most = params_range(space)
    return {
        "id": space.id,
        "decisions": len(space.decisions),
        "size": space.size,
        "candidates": list(dict.fromkeys(c for decision in space.decisions for c in decision.candidates)),
        "least_params": least,
        "most_params": most,
    }


def params_range(space: SearchSpace) -> tuple[int, int]:
    """Parameters of the smallest and the largest network; exact, because genes are independent of each other."""
    from bnas.profiles.cost import params

    of_candidate = {
        (d, k): sum(map(params, space.candidate_workloads(d, k)))
        for d, decision in enumerate(space.decisions)
        for k in range(len(decision.candidates))
    }
    fixed = sum(map(params, space.fixed_workloads()))
    genes = [[sum(of_candidate[pair] for pair in pairs) for pairs in gene.settings] for gene in space.genes]
    return fixed + sum(map(min, genes)), fixed + sum(map(max, genes))


def _reference(name: str) -> dict:
    from bnas.profiles.cost import binary_macs, macs, model_bytes, params
    from bnas.search.spaces import reference, space_of

    arch = reference(name)
    workloads = space_of(arch.space).workloads(arch)
    counts = (macs, binary_macs, params, model_bytes)
    return {"name": name, "space": arch.space} | {count.__name__: sum(map(count, workloads)) for count in counts}


def _show(document: dict) -> None:
    from rich.table import Table

    for space in document["spaces"]:
        output.print(f"[bold]{space['name']}[/bold]: {space['about']}")
        table = Table("instance", "decisions", "architectures", "parameters")
        for name, instance in space["instances"].items():
            table.add_row(
                name, str(instance["decisions"]), f"{instance['size']:,}",
                f"{instance['least_params']:,} to {instance['most_params']:,}",
            )  # fmt: skip
        output.print(table)
        output.print(f"candidates: {', '.join(space['candidates'])}", markup=False)
        for option, values in space["options"].items():
            output.print(f"{option}: {values if isinstance(values, str) else ', '.join(values)}", markup=False)
        output.print()
    for name, reason in document["left_out"].items():
        output.print(f"{name} is left out: {reason}\n", markup=False)
    table = Table("reference network", "1-bit MACs", "other MACs", "parameters", "bytes")
    for row in document["references"]:
        other = row["macs"] - row["binary_macs"]
        numbers = (row["binary_macs"], other, row["params"], row["model_bytes"])
        table.add_row(row["name"], *(f"{number:,}" for number in numbers))
    output.print(table)
    say("look at one: bnas show bireal18, or a random network of a space: bnas show cells:cifar --random 0")
