"""What a space says its networks run is what PyTorch is seen to run, operator by operator, on the real tensors."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bnas.profiles.workload import KINDS, Workload
from bnas.search.spaces import SPACES, SearchSpace, make_space, reference, references, space_of

BATCH = 2
Event = tuple  # (what, ...): one arithmetic operator on activations, with everything that decides what it costs


def bits_of(x: Tensor, weight: Tensor) -> int:
    """1 where all numbers are 1 or -1; 8 where weights are 8-bit integers times a number per row, and x is rounded."""
    if bool((x.abs() == 1).all() and (weight.abs() == 1).all()):
        return 1
    rows = weight.flatten(1)
    integers = rows / rows.abs().amax(1, keepdim=True) * 127
    return 8 if bool((integers - integers.round()).abs().max() < 1e-3 and len(x.unique()) <= 256) else 32


class Trace(TorchDispatchMode):
    """Records ATen operators that read what was computed from the images; those on weights alone are no events."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.live = {id(images): images}  # keeps tensors, so that no two have one id
        self.unpadded: dict[int, Tensor] = {}
        self.events: list[Event] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        read = [x for a in args for x in (a if isinstance(a, list) else [a]) if id(x) in self.live]
        if read:
            results = out if isinstance(out, tuple | list) else [out]
            self.live |= {id(tensor): tensor for tensor in results if isinstance(tensor, Tensor)}
            name = function.overloadpacket.__name__
            assert name in EVENTS, f"{name} is not an operator that networks are known to run"
            event = EVENTS[name](self, args, results[0])
            self.events += [] if event is None else [event]
        return out


def size(x: Tensor) -> tuple[int, ...]:
    assert len(x) == BATCH
    return tuple(x.shape[1:])


def no_event(trace: Trace, args: tuple, out: Tensor) -> None:
    """Signs: they are part of the convolution that reads them."""


def pad(trace: Trace, args: tuple, out: Tensor) -> None:
    assert args[2] == 1.0  # +1 around signs, in TensorFlow's order: the larger half comes after
    left, right, top, bottom = args[1]
    assert 0 <= right - left <= 1 and 0 <= bottom - top <= 1
    trace.unpadded[id(out)] = args[0]


def convolution(trace: Trace, args: tuple, out: Tensor) -> Event:
    x, weight, bias, (stride, _), padding, (dilation, _), _, _, groups = args
    source = trace.unpadded.get(id(x), x)
    bits = bits_of(x, weight)
    assert bias is None and list(padding) == [0 if bits == 1 else dilation * (weight.shape[2] // 2)] * 2
    return ("conv", bits, size(source), size(out), weight.shape[2], stride, dilation, groups)


def arithmetic(trace: Trace, args: tuple, out: Tensor) -> Event:
    """Two activations of one shape, or one and a value for each channel."""
    x, y = args
    if not isinstance(y, Tensor):
        return ("scale", size(x))
    return ("add", size(x)) if x.shape == y.shape else ("shift", size(x))


def cat(trace: Trace, args: tuple, out: Tensor) -> Event:
    parts = args[0]
    if all(part is parts[0] for part in parts):
        return ("repeat", size(parts[0]), size(out))
    return ("concat", size(out))


def pool(name: str) -> Callable[[Trace, tuple, Tensor], Event]:
    def event(trace: Trace, args: tuple, out: Tensor) -> Event:
        kernel, *stride = [pair[0] for pair in args[1:3] if pair]
        return (name, size(args[0]), size(out), kernel, *(stride or [kernel]))  # default: the kernel

    return event


def plain(name: str) -> Callable[[Trace, tuple, Tensor], Event]:
    return lambda trace, args, out: (name, size(args[0]))


def sliced(trace: Trace, args: tuple, out: Tensor) -> Event | None:
    dim, start, _, step = args[1:]
    return ("every_other", size(args[0]), start) if (dim, step) == (1, 2) else None


EVENTS: dict[str, Callable[[Trace, tuple, Tensor], Event | None]] = {
    "detach": no_event,
    "empty_like": no_event,
    "lt": no_event,
    "mul_": no_event,
    "add_": no_event,
    "constant_pad_nd": pad,
    "convolution": convolution,
    "native_batch_norm": plain("norm"),
    "add": arithmetic,
    "sub": arithmetic,
    "mul": arithmetic,
    "_prelu_kernel": plain("prelu"),
    "relu": plain("relu"),
    "max_pool2d_with_indices": pool("max_pool"),
    "avg_pool2d": pool("avg_pool"),
    "cat": cat,
    "split": plain("split"),
    "slice": sliced,
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": plain("quantize"),
    "mean": plain("mean"),
    "addmm": lambda trace, args, out: ("linear", bits_of(args[1], args[2].T), tuple(args[2].shape)),
}


def said(w: Workload) -> Iterator[Event]:
    """The operators that a workload stands for, from the description of its kind."""
    before, after = (w.in_channels, w.height, w.width), (w.out_channels, w.out_height, w.out_width)
    match w.kind:
        case "binary_conv" | "conv":
            yield ("conv", w.bits, before, after, w.kernel, w.stride, w.dilation, w.groups)
            yield ("norm", after)
            for part in w.epilogue:
                yield from {
                    "residual": [("add", after)],
                    "relu": [("relu", after)],
                    "prelu": [("prelu", after)],
                    "rprelu": [("shift", after), ("prelu", after), ("shift", after)],
                }[part]
            if w.bits == 8:
                yield ("quantize", after)
        case "downsample" | "duplicate":
            small = (w.in_channels, w.out_height, w.out_width)
            if w.kind == "downsample":
                yield ("avg_pool", before, small, 2, 2)
            if w.out_channels > w.in_channels:
                yield ("repeat", small, after)
        case "average":
            yield ("split", before)
            yield from [("add", after)] * (w.in_channels // w.out_channels - 1)
            yield ("scale", after)
        case "max_pool" | "avg_pool":
            yield (w.kind, before, after, 3, w.stride)
        case "relu" | "norm" | "quantize":
            yield (w.kind, before)
        case "add" | "concat":
            yield (w.kind, after)
        case "even_channels" | "odd_channels":
            yield ("every_other", before, int(w.kind == "odd_channels"))
        case "head":
            yield ("mean", before)
            if w.bits == 8:
                yield ("quantize", (w.in_channels,))
            yield ("linear", w.bits, (w.in_channels, w.out_channels))


def test_every_kind_stands_for_operators() -> None:
    for kind in KINDS.keys() - {"fixed"}:
        assert list(said(Workload(kind, 32, 64, 128 if kind == "duplicate" else 64, 8, 8))), kind


def run(network: torch.nn.Module, shape: tuple[int, int, int]) -> list[Event]:
    torch.manual_seed(0)
    images = torch.randn(BATCH, *shape)
    with torch.no_grad(), Trace(images) as trace:
        network.eval()(images)
    return trace.events


def with_options() -> Iterator[str]:
    """Every value of every option in the micro instance; all instances in 1 bit, float and 1 or 8 bits."""
    for name, module in SPACES.items():
        yield from (f"{name}:{instance}" for instance in module.STRIDES)
        yield f"{name}:imagenet:ends=8"
        for option, values in module.OPTIONS.items():
            yield from (f"{name}:micro:{option}={value}" for value in values[1:])
        if "bits" in module.OPTIONS:
            yield from (f"{name}:{instance}:bits={b}" for instance in ("cifar", "imagenet") for b in ("32", "1+8"))
        if "ops" in module.OPTIONS:
            yield from (f"{name}:micro:ops=separable,depthwise={depthwise}" for depthwise in ("int8", "grouped"))


@pytest.mark.parametrize("text", with_options())
def test_workloads_are_what_the_network_runs(text: str, rng: np.random.Generator) -> None:
    name, instance = text.split(":")[:2]
    stride = SPACES[name].STRIDES[instance]
    side = max(8, 2 * stride)
    # Not square where that is cheap; only in the cells do channels decide how many gigabytes there are.
    shape = (3, side, side + (stride if instance == "micro" else 0))
    wide = name == "cells" and instance != "micro"
    space = make_space(f"{text}{':' if text.count(':') == 1 else ','}channels=32" if wide else text, shape, 10)
    arch = space.random(rng)
    assert run(space.build(arch), space.shape) == [event for w in space.workloads(arch) for event in said(w)]


@pytest.mark.parametrize("name", references.REFERENCES)
def test_references_run_what_they_say(name: str) -> None:
    arch = reference(name, (3, 64, 64), 10)
    space = space_of(arch.space)
    assert run(space.build(arch), space.shape) == [event for w in space.workloads(arch) for event in said(w)]


def test_the_trace_sees_a_difference(micro: SearchSpace, rng: np.random.Generator) -> None:
    """Another architecture of the space runs something else."""
    a, b = micro.random(rng), micro.random(rng)
    assert Counter(run(micro.build(a), micro.shape)) != Counter(e for w in micro.workloads(b) for e in said(w))
