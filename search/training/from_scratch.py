"""Train the network of one architecture from fresh weights, and keep it as one safetensors file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import checkpoint
from ..augment import DeviceSplit
from ..spaces import Architecture, space_of
from .recipes import Recipe
from .trainer import Progress, accuracy, descend, fit


@dataclass(frozen=True)
class Trained:
    """Accuracies are shares, 0 to 1; the test split is looked at once, after the last step."""

    validation_accuracy: float
    test_accuracy: float
    losses: tuple[float, ...]


def train(
    arch: Architecture,
    recipe: Recipe,
    *,
    train_split: DeviceSplit,
    validation: DeviceSplit,
    test: DeviceSplit,
    augmentation: dict,
    seed: int,
    device: torch.device,
    folder: Path,
    progress: Progress,
) -> Trained:
    """Writes `folder`/model.safetensors; `folder`/training.safetensors is where an interrupted run goes on."""
    space = space_of(arch.space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = space.build(arch).to(device)
    losses = fit(
        network,
        descend(lambda images, step: network(images), recipe),
        train_split,
        recipe,
        seed=seed,
        augmentation=augmentation,
        path=folder / "training.safetensors",
        stage="train",
        progress=progress,
    )
    network.eval()
    result = Trained(accuracy(network, validation), accuracy(network, test), tuple(losses))
    checkpoint.save(folder / "model.safetensors", network.state_dict(), {"architecture": arch.to_dict()})
    return result


def load_network(path: Path) -> tuple[nn.Module, Architecture]:
    """The trained network in eval mode and its architecture. Raises InputError if the file is missing or corrupt."""
    from bnas.profiles.errors import InputError

    tensors, header = checkpoint.load(path)
    arch = Architecture.from_dict(header.get("architecture"), str(path))
    network = space_of(arch.space).build(arch)
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise InputError(f"{path} does not hold the weights of its architecture {arch.name}; train again") from None
    return network.eval(), arch
