"""The network of one architecture, made from its steps."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from .binary.layers import Style
from .binary.units import make_unit
from .spaces.wiring import IMAGE, Step


class Network(nn.Module):
    """[N, C, H, W] float -> [N, classes]. A step's module lies at the path that is its name."""

    def __init__(self, steps: Sequence[Step], style: Style | None = None) -> None:
        super().__init__()
        self._plan = attach(self, steps, style)
        last_reader = {name: i for i, step in enumerate(steps) for name in step.inputs}
        self._done: list[list[str]] = [[] for _ in steps]  # values that nobody reads after step i
        for name, i in last_reader.items():
            self._done[i].append(name)

    def forward(self, x: Tensor) -> Tensor:
        values = {IMAGE: x}
        for (step, unit), done in zip(self._plan, self._done, strict=True):
            values[step.name] = unit(*(values[name] for name in step.inputs))
            for name in done:
                del values[name]
        return values[self._plan[-1][0].name]


def attach(
    root: nn.Module, steps: Iterable[Step], style: Style | None, *, affine: bool = True
) -> list[tuple[Step, nn.Module]]:
    """Make the module of every step, in order, and hang it into `root` at the step's dotted name."""
    made = []
    for step in steps:
        *path, leaf = step.name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        unit = make_unit(step.unit, style, affine=affine)
        place.add_module(leaf, unit)
        made.append((step, unit))
    return made
