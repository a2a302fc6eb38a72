"""`Supernet`: every candidate of every layer at once; which ones run is an argument, never stored state."""

from collections.abc import Sequence

from torch import Tensor, nn

from .network import Head, make_candidate, make_stem
from .spaces.chain import ChainSpace


class Supernet(nn.Module):
    """[N, C, H, W], gates -> [N, classes]. gates[d] is the index of the candidate that runs at decision d.

    Batch-norm has no affine part here, so that candidates share scale (SPOS, Guo et al. 2020); parameters off the path
    keep `grad is None`.
    """

    def __init__(self, space: ChainSpace) -> None:
        super().__init__()
        self.stem = make_stem(space.stem, affine=False)
        self.layers = nn.ModuleList(
            nn.ModuleList(make_candidate(layer, c, affine=False) for c in layer.decision.candidates)
            for layer in space.layers
        )
        self.head = Head(space.head)

    def forward(self, x: Tensor, gates: Sequence[int]) -> Tensor:
        x = self.stem(x)
        for candidates, index in zip(self.layers, gates, strict=True):
            x = candidates[index](x)
        return self.head(x)
