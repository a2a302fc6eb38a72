"""A network as a description: fused units, the values they read, and the places where a decision chooses a block.

A template is a sequence of steps, choices and sums. The stand-alone network, its workloads and the supernet all come
from it, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnas.profiles.workload import Workload

IMAGE = "image"


@dataclass(frozen=True)
class Value:
    """The result of a step: [N, channels, height, width]. eight_bit: its numbers lie on a grid of 256."""

    name: str
    channels: int
    height: int
    width: int
    eight_bit: bool = False


@dataclass(frozen=True)
class Step:
    """One unit. name: a dotted path that names its value and, in torch, its module; inputs: names of values."""

    name: str
    unit: Workload
    inputs: tuple[str, ...]


Block = tuple[Step, ...]  # the last step makes the block's value; a block without steps passes its input on


@dataclass(frozen=True)
class Choice:
    """A value made by one of several blocks; blocks[k] belongs to candidate k of the decision, None makes no value."""

    name: str
    decision: int
    input: str
    blocks: tuple[Block | None, ...]


@dataclass(frozen=True)
class Sum:
    """The sum of those inputs that there are."""

    name: str
    inputs: tuple[str, ...]
    channels: int
    height: int
    width: int

    @property
    def unit(self) -> Workload:
        """One addition of two values; a sum of n costs n - 1 of them."""
        return Workload("add", 32, 2 * self.channels, self.channels, self.height, self.width)


Template = tuple[Step | Choice | Sum, ...]


def resolve(template: Template, gates: Sequence[int]) -> tuple[Step, ...]:
    """The steps of one network: gates[d] is the candidate taken at decision d.

    Raises ValueError if a sum is left without any value.
    """
    stands_for: dict[str, str | None] = {}  # values of choices and sums -> the step that makes them

    def real(name: str) -> str | None:
        return stands_for.get(name, name)

    steps: list[Step] = []
    for item in template:
        if isinstance(item, Choice):
            block = item.blocks[gates[item.decision]]
            for step in block or ():
                steps.append(_rewired(step, real))
            stands_for[item.name] = None if block is None else steps[-1].name if block else real(item.input)
        elif isinstance(item, Sum):
            present = [name for name in map(real, item.inputs) if name is not None]
            if not present:
                raise ValueError(f"{item.name} has no input")
            last, *others = present
            for number, name in enumerate(others):
                steps.append(Step(f"{item.name}.add{number}", item.unit, (last, name)))
                last = steps[-1].name
            stands_for[item.name] = last
        else:
            steps.append(_rewired(item, real))
    return tuple(steps)


def _rewired(step: Step, real: Callable[[str], str | None]) -> Step:
    inputs = tuple(name for name in map(real, step.inputs) if name is not None)
    assert len(inputs) == len(step.inputs), f"{step.name} reads a value that is not there"
    return replace(step, inputs=inputs)


class Wiring:
    """Describes a network step by step and keeps track of shapes. prefix: put before the names of all steps."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.items: list[Step | Choice | Sum] = []

    def at(self, path: str) -> Wiring:
        """Describes a part of the same network, with `path` before the names of its steps."""
        part = Wiring(f"{self.prefix}{path}.")
        part.items = self.items
        return part

    def step(
        self, name: str, kind: str, *inputs: Value, out: int | None = None, bits: int = 32, **fields: Any
    ) -> Value:
        """Append one unit; out: its channels (default: as many as come in)."""
        x = inputs[0]
        channels = sum(v.channels for v in inputs) if kind in ("add", "concat") else x.channels
        unit = Workload(kind, bits, channels, channels if out is None else out, x.height, x.width, **fields)
        name = self.prefix + name
        self.items.append(Step(name, unit, tuple(v.name for v in inputs)))
        eight_bit = bits == 8 or (x.eight_bit and kind in ("max_pool", "relu", "even_channels", "odd_channels"))
        return Value(name, unit.out_channels, unit.out_height, unit.out_width, eight_bit)

    def conv(
        self,
        name: str,
        x: Value,
        out: int,
        kernel: int,
        stride: int = 1,
        *,
        bits: int = 32,
        groups: int = 1,
        dilation: int = 1,
        act: str = "",
    ) -> Value:
        """A float or 8-bit convolution; in front of 8 bits the input is rounded, unless it already is."""
        if bits == 8 and not x.eight_bit:
            x = self.step(f"{name}_input", "quantize", x, bits=8)
        fields = {"kernel": kernel, "stride": stride, "dilation": dilation, "groups": groups}
        return self.step(name, "conv", x, out=out, bits=bits, epilogue=(act,) if act else (), **fields)

    def binary(
        self,
        name: str,
        x: Value,
        out: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        act: str = "rprelu",
        shortcut: Value | None = None,
    ) -> Value:
        """A 1-bit unit around which `shortcut` goes; default: the input, pooled and matched in channels."""
        residual = self.shortcut(f"{name}_shortcut", x, out, stride) if shortcut is None else shortcut
        epilogue = ("residual", act) if act else ("residual",)
        fields = {"kernel": kernel, "stride": stride, "dilation": dilation, "groups": groups}
        return self.step(name, "binary_conv", x, residual, out=out, bits=1, epilogue=epilogue, **fields)

    def shortcut(self, name: str, x: Value, out: int, stride: int = 1) -> Value:
        """`x` without any weights at `out` channels: repeated or averaged, with stride 2 behind a 2x2 mean (ReActNet).

        Raises ValueError if neither number of channels divides the other.
        """
        if out % x.channels and x.channels % out:
            raise ValueError(f"{name}: no shortcut from {x.channels} to {out} channels")
        if stride == 2:
            x = self.step(f"{name}_pool", "downsample", x, out=max(out, x.channels), kernel=2, stride=2)
        if out > x.channels:
            return self.step(f"{name}_repeat", "duplicate", x, out=out)
        return self.step(f"{name}_mean", "average", x, out=out) if out < x.channels else x

    def choice(self, name: str, decision: int, x: Value, candidates: Mapping[str, Describe]) -> Value:
        """A choice between what the functions describe; one that returns None makes no value.

        All others must agree in the shape of their result, else ValueError.
        """
        blocks, results = [], []
        for candidate, describe in candidates.items():
            wiring = Wiring(f"{self.prefix}{name}.{candidate}.")
            result = describe(wiring, x)
            blocks.append(None if result is None else wiring.block)
            results += [] if result is None else [(result.channels, result.height, result.width)]
        if len(set(results)) != 1:
            raise ValueError(f"{name}: candidates differ in shape: {sorted(set(results))}")
        self.items.append(Choice(self.prefix + name, decision, x.name, tuple(blocks)))
        return Value(self.prefix + name, *results[0])

    def sum(self, name: str, *values: Value) -> Value:
        total = replace(values[0], name=self.prefix + name, eight_bit=False)
        names = tuple(v.name for v in values)
        self.items.append(Sum(total.name, names, total.channels, total.height, total.width))
        return total

    @property
    def template(self) -> Template:
        return tuple(self.items)

    @property
    def block(self) -> Block:
        steps = tuple(item for item in self.items if isinstance(item, Step))
        assert len(steps) == len(self.items), "choices do not nest"
        return steps


# Describes a block that reads a value; None instead of a result: the block makes no value.
Describe = Callable[[Wiring, Value], Value | None]


def units(template: Template) -> Iterator[Workload]:
    """Every unit that any network of the template can have, with repetitions."""
    for item in template:
        if isinstance(item, Choice):
            yield from (step.unit for block in item.blocks for step in block or ())
        else:
            yield item.unit
