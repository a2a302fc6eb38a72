"""Networks made of what search spaces are made of, in plain torch: every one must pass the gate in each format."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.export.capture import capture
from bnas.export.gate import ExposedFile, GateError, check, expose_onnx
from bnas.export.graph import FloatOp, Graph
from bnas.export.lowering import lower
from bnas.export.onnx_writer import write_onnx
from bnas.export.pipeline import export_network
from bnas.export.tflite_file import expose
from bnas.export.tflite_writer import write_tflite
from bnas.export.units import graph_workloads
from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload

IMAGES = np.random.default_rng(0).standard_normal((300, 3, 8, 10)).astype(np.float32)
CHANNELS = 32


def random_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight, 1, 0.2)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def pool(x: Tensor, kind: str, stride: int) -> Tensor:
    """3x3 over what is inside of the image, placed as TensorFlow does."""
    after = stride == 2 and x.shape[2] % 2 == 0
    if kind == "max":
        return F.max_pool2d(x, 3, stride, 0 if after else 1, ceil_mode=after)
    return F.avg_pool2d(x, 3, stride, 0 if after else 1, ceil_mode=after, count_include_pad=False)


class Binary(nn.Module):
    """A binary unit with a residual of its own."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 3, 3)), random_norm(CHANNELS)
        self.norm.running_var.fill_(9.0 * CHANNELS)
        self.shift, self.stride = nn.Parameter(torch.randn(1, CHANNELS, 1, 1) / 4), stride

    def forward(self, x: Tensor) -> Tensor:
        pads = (0, 1, 0, 1) if self.stride == 2 and x.shape[2] % 2 == 0 else (1, 1, 1, 1)
        signs = F.pad(torch.where(x < self.shift, -1.0, 1.0), pads, value=1.0)
        y = self.norm(F.conv2d(signs, torch.where(self.weight < 0, -1.0, 1.0), stride=self.stride))
        return F.relu(y + (x if self.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True)))


class Separable(nn.Sequential):
    """ReLU -> depthwise -> pointwise -> batch-norm, as in cells of float operations."""

    def __init__(self, kernel: int, stride: int, dilation: int) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, dilation, CHANNELS, bias=False),
            nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
            random_norm(CHANNELS),
        )


class Cell(nn.Module):
    """Nodes that add two edges each; the output sets them behind each other."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.edges = nn.ModuleList([Separable(3, stride, 1), Separable(5, stride, 2), Separable(3, 1, 2), Binary()])
        self.norm, self.squeeze = random_norm(CHANNELS), nn.Conv2d(3 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.edges[0](x) + self.edges[1](x)
        b = pool(x, "max", self.stride) + self.edges[2](a)
        c = self.norm(pool(b, "avg", 1)) + self.edges[3](b)
        return self.squeeze(torch.cat([a, b, c], 1))


class Shuffle(nn.Module):
    """One half of the channels passes, the other is computed; then they are set together."""

    def __init__(self) -> None:
        super().__init__()
        half = CHANNELS // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            random_norm(half),
            nn.Conv2d(half, half, 1, bias=False),
            random_norm(half),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0::2], self.branch(x[:, 1::2])], dim=1)


class Network(nn.Module):
    def __init__(self, *blocks: nn.Module, channels: int = CHANNELS) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), random_norm(CHANNELS))
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class Pooled(nn.Module):
    def __init__(self, kind: str, stride: int) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride

    def forward(self, x: Tensor) -> Tensor:
        return pool(x, self.kind, self.stride)


NETWORKS: dict[str, Callable[[], Network]] = {
    "cells": lambda: Network(Cell(1), Cell(2)),
    "shuffle": lambda: Network(Shuffle(), Binary(), Shuffle(), Binary(2)),
    "pools": lambda: Network(Pooled("avg", 2), Binary(), Pooled("max", 2), Binary(), Pooled("avg", 2)),
    "grouped": lambda: Network(
        nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1, groups=4), nn.PReLU(), Binary(), nn.Conv2d(CHANNELS, 8, 3, groups=2),
        channels=8,
    ),
}  # fmt: skip


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_every_network_passes_the_gate(
    network: Network, format: str, tmp_path: Path, require: Callable[[str], None]
) -> None:
    if format == "tflite":
        require("tensorflow")
        require("larq_compute_engine")
    report = export_network(network, IMAGES, tmp_path / f"net.{format}", format, {}, twins=format == "onnx")
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert report["float_convs"] == len(convolutions) and report["eight_bit"]["convolutions"] == 0
    assert report["binary_convs"] == sum(isinstance(module, Binary) for module in network.modules())


def test_the_workloads_of_a_shuffled_network() -> None:
    torch.manual_seed(0)
    graph = lower(capture(Network(Shuffle(), Pooled("max", 2)), torch.from_numpy(IMAGES[:2]))).graph
    half = CHANNELS // 2
    assert graph_workloads(graph) == (
        Workload("conv", 32, 3, CHANNELS, 8, 10, 3),
        Workload("even_channels", 32, CHANNELS, half, 8, 10),
        Workload("odd_channels", 32, CHANNELS, half, 8, 10),
        Workload("conv", 32, half, half, 8, 10, 3, groups=half),
        Workload("conv", 32, half, half, 8, 10, epilogue=("relu",)),
        Workload("concat", 32, CHANNELS, CHANNELS, 8, 10),
        Workload("max_pool", 32, CHANNELS, CHANNELS, 8, 10, 3, 2),
        Workload("head", 32, CHANNELS, 5, 4, 5),
    )


def replaced(graph: Graph, of_kind: str, index: int, **changes: Any) -> Graph:
    """The graph with a change of kind, inputs or attributes in the index-th operator of a kind."""
    target = [node for node in graph.nodes if isinstance(node, FloatOp) and node.kind == of_kind][index]
    attributes = {key: changes.pop(key) for key in list(changes) if key in target.attributes}
    wrong = replace(target, attributes=target.attributes | attributes, **changes)
    return replace(graph, nodes=tuple(wrong if node is target else node for node in graph.nodes))


def louder(graph: Graph) -> Graph:
    """One of a depthwise convolution's weights is wrong by a hundredth of the largest."""
    conv = graph.float_convs[1]
    weight = conv.attributes["weight"].copy()
    weight[7, 0, 1, 1] += 1e-2 * np.abs(weight).max()
    return replaced(graph, "conv", 1, weight=weight)


def swapped(graph: Graph) -> Graph:
    concat = next(node for node in graph.nodes if isinstance(node, FloatOp) and node.kind == "concat")
    return replaced(graph, "concat", 0, inputs=concat.inputs[::-1])


# of the networks above, a wrong operator in front of a binary unit, and what that is called
WRONG: dict[str, tuple[str, Callable[[Graph], Graph]]] = {
    "weight": ("shuffle", louder),
    "stride of channels": ("shuffle", lambda g: replaced(g, "slice", 1, start=0, stop=CHANNELS - 1)),
    "order": ("shuffle", swapped),
    "placement": ("pools", lambda g: replaced(g, "avg_pool", 0, pads=(1, 1, 0, 0))),
    "kind of pool": ("pools", lambda g: replaced(g, "max_pool", 0, kind="avg_pool")),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_wrong_float_operator_is_found(
    wrong: str, format: str, tmp_path: Path, require: Callable[[str], None]
) -> None:
    torch.manual_seed(0)
    name, spoil = WRONG[wrong]
    captured = capture(NETWORKS[name](), torch.from_numpy(IMAGES[:2]))
    lowered = lower(captured)
    path = tmp_path / f"net.{format}"
    if format == "tflite":
        require("tensorflow")
        require("larq_compute_engine")
        write_tflite(spoil(lowered.graph), path, {})
        file: ExposedFile = expose(path, lowered.graph)
    else:
        write_onnx(spoil(lowered.graph), path, {})
        file = expose_onnx(path, lowered.graph)
    with pytest.raises(GateError, match="fed the same input, file and PyTorch differ by"):
        check(captured, lowered, file, IMAGES[:4])


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (nn.AvgPool2d(3, 1, 1), r"avg_pool2d in blocks\.0 with padding that counts \(count_include_pad=True\)"),
        (nn.AvgPool2d(2, divisor_override=3), "with its own divisor"),
        (nn.MaxPool2d(2, dilation=2), "with dilation"),
    ],
)
def test_pools_of_another_meaning_are_refused(block: nn.Module, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        lower(capture(Network(block), torch.from_numpy(IMAGES[:2])))
