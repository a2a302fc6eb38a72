"""A step of the `cells` supernet in float beside that of DARTS: `python benchmarks/supernet_speed.py --darts FOLDER`.

FOLDER is the folder cnn of a checkout of github.com/quark0/darts, whose search network is run as it is. Both have 16
channels, 8 cells, all 8 operations mixed by softmax(alpha) on every edge, batches of 16 CIFAR-sized images, and their
steps are forward and backward to weights and alpha. They take turns in one process; medians are compared.

They are not the same in four places. DARTS has a batch-norm behind each pool; "ours, pools normalised" has that, too.
Ours has one behind each depthwise convolution, DARTS only behind the 1x1 that follows. DARTS multiplies a copy of the
input by zero for `none`; ours leaves it out. Ours computes a pool or ReLU that several edges of a node ask for once.
Each is also timed with the channels of the images innermost, as our trainer has it.
"""

import argparse
import json
import os
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.runtime_bench import machine
from bnas.search.binary.units import Pool
from bnas.search.spaces import make_space
from bnas.search.supernet import Supernet

SPACE = "cells:cifar:bits=32"
CHANNELS, CELLS, BATCH, CLASSES = 16, 8, 16, 10
SHAPE = (3, 32, 32)
LAYOUTS = {"as they are": torch.contiguous_format, "channels innermost": torch.channels_last}
COUNTED = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, Pool)
Step = Callable[[Tensor, Tensor], None]
Key = tuple[str, str]  # (layout, network)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """`.cuda()` gives what it is called on, and torchvision, which the checkout imports but does not need, is empty."""
    moves = Tensor.cuda, nn.Module.cuda
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms")
    hidden = {name: sys.modules.get(name) for name in names}
    stand_ins = {name: types.ModuleType(name) for name in names}
    for name in names[1:]:
        setattr(stand_ins[names[0]], name.rpartition(".")[2], stand_ins[name])
    Tensor.cuda = nn.Module.cuda = lambda self, *arguments, **named: self
    sys.modules |= stand_ins
    try:
        yield
    finally:
        Tensor.cuda, nn.Module.cuda = moves
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def darts(folder: Path) -> tuple[nn.Module, Step]:
    """The public search network and its step."""
    sys.path.insert(0, str(folder))
    with on_the_cpu():
        from model_search import Network  # type: ignore[import-not-found]

        network = Network(CHANNELS, CLASSES, CELLS, nn.CrossEntropyLoss())
    alphas = network.arch_parameters()

    def step(images: Tensor, labels: Tensor) -> None:
        network.zero_grad(set_to_none=True)
        for alpha in alphas:
            alpha.grad = None
        network._loss(images, labels).backward()

    return network, step


def ours(*, normalise_pools: bool = False) -> tuple[nn.Module, Step]:
    """Our supernet with soft gates, and its step."""
    space = make_space(f"{SPACE},channels={CHANNELS},layers={CELLS}", SHAPE, CLASSES)
    supernet = Supernet(space)
    alpha = (1e-3 * torch.randn(len(space.decisions), len(space.decisions[0].candidates))).requires_grad_()
    if normalise_pools:
        for pool in (module for module in supernet.modules() if isinstance(module, Pool)):
            pool.norm = nn.LazyBatchNorm2d(affine=False)
            pool.register_forward_hook(lambda pool, inputs, result: pool.norm(result))

    def step(images: Tensor, labels: Tensor) -> None:
        supernet.zero_grad(set_to_none=True)
        alpha.grad = None
        F.cross_entropy(supernet(images, list(alpha.softmax(dim=1))), labels).backward()

    return supernet, step


def operations(network: nn.Module, step: Step, images: Tensor, labels: Tensor) -> dict[str, int]:
    """How many modules of each kind one step runs."""
    step(images, labels)  # the batch-norms behind pools learn their sizes
    counts: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda module, inputs, result: counts.update([type(module).__name__]))
        for module in network.modules()
        if isinstance(module, COUNTED)
    ]
    step(images, labels)
    for hook in hooks:
        hook.remove()
    return dict(sorted(counts.items()))


def alternate(steps: Mapping[Key, Callable[[], None]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each step, one of each per round; a first round is not counted."""
    taken: dict[Key, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                taken[name].append(time.perf_counter() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--darts", type=Path, required=True, metavar="FOLDER", help="cnn of a checkout of DARTS")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    if not (options.darts / "model_search.py").is_file():
        sys.exit(f"{options.darts} has no model_search.py; give the folder cnn of a checkout of DARTS")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    networks = {
        "DARTS": darts(options.darts.resolve()),
        "ours": ours(),
        "ours, pools normalised": ours(normalise_pools=True),
    }
    images, labels = torch.randn(BATCH, *SHAPE), torch.randint(CLASSES, (BATCH,))
    result: dict[str, Any] = {
        "networks": {
            name: {
                "parameters": sum(p.numel() for p in network.parameters()),
                "operations": operations(network, step, images, labels),
            }
            for name, (network, step) in networks.items()
        }
    }
    for name, entry in result["networks"].items():
        print(f"{name}: {entry['parameters']:,} parameters; a step runs {entry['operations']}")
    steps = {
        (layout, name): partial(step, images.contiguous(memory_format=order), labels)
        for layout, order in LAYOUTS.items()
        for name, (_, step) in networks.items()
    }
    load = [os.getloadavg()[0]]
    taken = alternate(steps, options.rounds)
    load.append(os.getloadavg()[0])
    for (layout, name), seconds in taken.items():
        ratio = median(taken[layout, "DARTS"]) / median(seconds)
        print(f"{layout:18} {name:22} median {median(seconds):5.2f} s, least {min(seconds):5.2f} s, ratio {ratio:.2f}")
    print(f"{options.threads} threads; load of the machine before and after: {load[0]:.1f}, {load[1]:.1f}")
    result["seconds"] = {layout: {name: taken[layout, name] for name in networks} for layout in LAYOUTS}
    result |= {"threads": options.threads, "load": load, "torch": torch.__version__, "machine": machine.describe()}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
