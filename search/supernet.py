"""`Supernet`: every candidate of every decision at once; which ones run is an argument, never stored state."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .binary.layers import Style
from .network import attach
from .spaces.space import SearchSpace
from .spaces.wiring import IMAGE, Choice, Step, Sum

Gate: TypeAlias = int | tuple[int, Tensor] | list[tuple[int, Tensor | float]] | Tensor
Plan = list[tuple[Step, nn.Module]]


class Supernet(nn.Module):
    """[N, C, H, W], gates -> [N, classes]. gates[d] says what decision d makes of its candidates o_0, ..., o_(K-1):

        index k, an int                    o_k(x)                     SPOS, FairNAS, BN-NAS, DI-NAS, CP-NAS
        hard  (k, g), g a scalar tensor    g * o_k(x)                 GDAS, ProxylessNAS: g is 1, and carries a gradient
        soft  float tensor [K]             sum over k of g_k o_k(x)   DARTS and its kin, SNAS
        mask  bool tensor [K]              sum of the o_k(x) kept     One-Shot
        some  list of (k, g)               sum of their g o_k(x)      soft, where most candidates are gone

    What does not run costs nothing, and its parameters keep `grad is None`. A candidate `none` contributes nothing.
    affine: whether batch-norms have gamma and beta; without, candidates share scale (SPOS, Guo et al. 2020).
    """

    def __init__(self, space: SearchSpace, style: Style | None = None, *, affine: bool = False) -> None:
        super().__init__()
        self._plan: list[tuple[Step | Choice | Sum, list[Plan | None]]] = []
        for item in space.template:
            if isinstance(item, Step):
                self._plan.append((item, [attach(self, [item], style, affine=affine)]))
            elif isinstance(item, Choice):
                blocks = [None if b is None else attach(self, b, style, affine=affine) for b in item.blocks]
                self._plan.append((item, blocks))
            else:
                self._plan.append((item, []))

    def forward(self, x: Tensor, gates: Sequence[Gate]) -> Tensor:
        values: dict[str, Tensor | None] = {IMAGE: x}
        shared: dict[tuple, Tensor] = {}
        for item, plans in self._plan:
            if isinstance(item, Sum):
                total = _sum([v for v in map(values.get, item.inputs) if v is not None])
                values[item.name] = _zeros(item, x) if total is None else total
            elif isinstance(item, Choice):
                values[item.name] = _choose(plans, gates[item.decision], item.input, values, shared)
            else:
                (plan,) = plans
                assert plan is not None
                values[item.name] = _run(plan, item.name, values, shared)
        result = values[self._plan[-1][0].name]
        assert result is not None
        return result


def _choose(
    plans: list[Plan | None], gate: Gate, source: str, values: dict[str, Tensor | None], shared: dict[tuple, Tensor]
) -> Tensor | None:
    def run(k: int) -> Tensor | None:
        plan = plans[k]
        return None if plan is None else _run(plan, source, values, shared)

    if isinstance(gate, int):
        return run(gate)
    if isinstance(gate, tuple):
        value = run(gate[0])
        return None if value is None else gate[1] * value
    if isinstance(gate, list):
        results = [None if plans[k] is None else g * run(k) for k, g in gate]  # type: ignore[operator]
    elif gate.dtype == torch.bool:
        results = [run(k) for k, keep in enumerate(gate.tolist()) if keep]
    else:
        results = [None if value is None else gate[k] * value for k, value in enumerate(map(run, range(len(plans))))]
    return _sum([value for value in results if value is not None])


def _sum(values: list[Tensor]) -> Tensor | None:
    if not values:
        return None
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _run(plan: Plan, source: str, values: dict[str, Tensor | None], shared: dict[tuple, Tensor]) -> Tensor:
    """The value of a block that reads `source`. A unit without parameters is computed once for equal inputs: the edges
    of a cell that leave one node ask for the same pools, and their separable convolutions for the same ReLU."""
    inner: dict[str, Tensor] = {}
    value = values[source] if not plan else None
    for step, unit in plan:
        key = (step.unit, step.inputs) if step.unit.kind in SHARED else None
        if key is not None and key in shared:
            value = shared[key]
        else:
            value = unit(*(inner[name] if name in inner else values[name] for name in step.inputs))
            if key is not None:
                shared[key] = value
        inner[step.name] = value
    assert value is not None
    return value


SHARED = ("relu", "max_pool", "avg_pool", "downsample", "duplicate", "average", "even_channels", "odd_channels")


def _zeros(item: Sum, x: Tensor) -> Tensor:
    return x.new_zeros(len(x), item.channels, item.height, item.width)
