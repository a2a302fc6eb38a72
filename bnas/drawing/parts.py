"""The parts of a network as people read it: stem, layers or cells, head; each with its units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bnas.search.spaces import Architecture, SearchSpace
from bnas.search.spaces.wiring import Choice, Step, resolve

_PATH = re.compile(
    r"[a-z_]+\d*(\.\d+(?=\.|$))*"
)  # stem0, layers.3 of layers.3.k3e6.expand, stages.0.1 of stages.0.1.depth


@dataclass(frozen=True)
class Part:
    """Units whose names begin alike, in order.

    choice: the candidate taken there, empty where nothing is chosen; a block that passes its input on has no steps.
    group: the type of a cell (its choices are those of all cells of the type), empty for the parts of a chain.
    """

    name: str
    steps: tuple[Step, ...]
    choice: str = ""
    group: str = ""

    def local(self, step: Step) -> str:
        """The step's name inside of the part; empty if the part is this one step."""
        return step.name[len(self.name) + 1 :]


def parts(space: SearchSpace, arch: Architecture) -> tuple[Part, ...]:
    """All units of the network are in them, in the order of `space.steps`, if the parts follow one another there."""
    gates = space.gates(space.indices(arch))
    names = _names([item.name for item in space.template])
    steps: dict[str, list[Step]] = {name: [] for name in names.values()}
    choices: dict[str, str] = {}
    groups: dict[str, str] = {}
    for item in space.template:
        name = names[_path(item.name)]
        if isinstance(item, Choice):
            decision = space.decisions[item.decision]
            if decision.group:
                groups[name] = decision.group
            else:
                choices[name] = decision.candidates[gates[item.decision]]
    for step in resolve(space.template, gates):
        steps[names[_path(step.name)]].append(step)
    return tuple(Part(name, tuple(own), choices.get(name, ""), groups.get(name, "")) for name, own in steps.items())


def _names(items: Sequence[str]) -> dict[str, str]:
    """The part of each path; what stands around one unit, such as its shortcut's pool, is named after it."""
    paths = dict.fromkeys(map(_path, items))
    return {path: next((p for p in paths if path.startswith(f"{p}_")), path) for path in paths}


def _path(name: str) -> str:
    match = _PATH.match(name)
    assert match, name
    return match[0]
