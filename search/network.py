"""From a space to torch: the parts of a chain, the network of one architecture, and how its parts are made."""

from torch import Tensor, nn

from bnas.profiles.workload import Workload

from .binary.blocks import Plain, Widened
from .spaces.architecture import Architecture
from .spaces.chain import IDENTITY, ChainSpace, Layer, kernel_and_expansion


def make_stem(stem: Workload, *, affine: bool = True) -> nn.Module:
    """Float convolution and batch-norm: the signs that follow are taken of a zero-centred image."""
    return nn.Sequential(
        nn.Conv2d(stem.in_channels, stem.out_channels, stem.kernel, stem.stride, padding=stem.kernel // 2, bias=False),
        nn.BatchNorm2d(stem.out_channels, affine=affine),
    )


def make_candidate(layer: Layer, candidate: str, *, affine: bool = True) -> nn.Module:
    """The module of one candidate, with fresh weights."""
    if candidate == IDENTITY:
        return nn.Identity()
    kernel, expansion = kernel_and_expansion(candidate)
    if expansion == 1:
        return Plain(layer.in_channels, layer.out_channels, kernel, layer.stride, affine=affine)
    return Widened(layer.in_channels, kernel, expansion, affine=affine)


class Head(nn.Module):
    """Global average pool and linear classifier: [N, C, H, W] -> [N, classes]."""

    def __init__(self, head: Workload) -> None:
        super().__init__()
        self.linear = nn.Linear(head.in_channels, head.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(dim=(2, 3)))


class Network(nn.Module):
    """The network of one architecture: [N, C, H, W] float -> [N, classes]."""

    def __init__(self, space: ChainSpace, arch: Architecture) -> None:
        super().__init__()
        self.stem = make_stem(space.stem)
        pairs = zip(space.layers, arch.choices, strict=True)
        self.blocks = nn.Sequential(*(make_candidate(layer, c) for layer, c in pairs if c != IDENTITY))
        self.head = Head(space.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))
