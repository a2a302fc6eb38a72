"""What the own training kernels save: `python benchmarks/training.py [--json FILE]`.

Each pair is timed side by side, in alternating blocks, on one thread: the sign and the activation of a binary unit as
search/binary/ trains them against the plain PyTorch spelling, and a whole training step of a network.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from bnas.search.binary import layers, quantizers
from bnas.search.spaces import make_space


def plain_sign(x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    return torch.where(x < shift, -1.0, 1.0)


def plain_activation(self: layers.RPReLU, x: Tensor) -> Tensor:
    return F.prelu(x - self.shift_in, self.slope) + self.shift_out


def side_by_side(ours: Callable[[], object], plain: Callable[[], object], rounds: int = 12, runs: int = 5) -> dict:
    """Median ms of both and their ratio; a round gives each 2 untimed and `runs` timed runs."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("plain", plain)):
            for repeat in range(runs + 2):
                start = time.perf_counter()
                run()
                if repeat >= 2:
                    times[name].append(1e3 * (time.perf_counter() - start))
    result = {f"{name}_ms": median(values) for name, values in times.items()}
    return result | {"ratio": result["plain_ms"] / result["ours_ms"]}


def activation_pair() -> tuple[Callable[[], object], Callable[[], object]]:
    layer = layers.RPReLU(64).train()
    x = torch.randn(64, 64, 8, 8, requires_grad=True)
    upstream = torch.randn(64, 64, 8, 8)
    return lambda: layer(x).backward(upstream), lambda: plain_activation(layer, x).backward(upstream)


def step_pair() -> tuple[Callable[[], object], Callable[[], object]]:
    space = make_space("tiny", (1, 8, 8), 10)
    network = space.build(space.architecture([2, 1, 0, 1, 0, 2])).train()
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))

    def ours() -> None:
        network.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()

    def plain() -> None:
        own = quantizers.sign, layers.RPReLU.forward
        quantizers.sign, layers.RPReLU.forward = plain_sign, plain_activation  # type: ignore[method-assign]
        try:
            ours()
        finally:
            quantizers.sign, layers.RPReLU.forward = own  # type: ignore[method-assign]

    return ours, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(64, 64, 8, 8)
    pairs = {
        "sign": (lambda: quantizers.sign(x), lambda: plain_sign(x)),
        "activation": activation_pair(),
        "training step": step_pair(),
    }
    result = {name: side_by_side(*pair) for name, pair in pairs.items()}
    for name, row in result.items():
        print(f"{name:14} {row['ours_ms']:8.3f} ms, plain {row['plain_ms']:8.3f} ms, {row['ratio']:.2f} times as fast")
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
