"""The one training loop: resumable at any step, and the resumed run equals the uninterrupted one.

Nothing random is stored: the order of images, their augmentation and the path taken are functions of (seed, step),
so weights, optimiser state and the step number are the whole state.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checkpoint
from ..augment import DeviceSplit, augment, order
from ..binary.layers import BinaryConv2d
from .recipes import Recipe

SAVE_EVERY_S = 30.0
Learn = Callable[[Tensor, Tensor, int], Tensor]  # (images, labels, step) -> mean loss; leaves gradients behind
Progress = Callable[[str, int, int], None]  # (stage, done, total)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup = max(1, round(recipe.warmup * steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam with decoupled decay on float matrices and kernels only: decay would flip the signs of 1-bit weights."""
    binary = {id(p) for m in model.modules() if isinstance(m, BinaryConv2d) for p in m.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() >= 2 and p.shape[0] > 1 and id(p) not in binary]
    chosen = {id(p) for p in decayed}
    rest = [p for p in trained if id(p) not in chosen]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=True,
    )


def descend(forward: Callable[[Tensor, int], Tensor], recipe: Recipe) -> Learn:
    """The plain step: cross-entropy of the logits forward(images [B, C, H, W], step)."""

    def learn(images: Tensor, labels: Tensor, step: int) -> Tensor:
        loss = F.cross_entropy(forward(images, step), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        return loss.detach()

    return learn


def fit(
    model: nn.Module,
    learn: Learn,
    data: DeviceSplit,
    recipe: Recipe,
    *,
    seed: int,
    augmentation: dict,
    path: Path,
    stage: str,
    progress: Progress,
) -> list[float]:
    """Train `model` in place; checkpoint to `path` after each epoch and every 30 s; continue from it if it exists.

    Only parameters that require a gradient are trained. learn(images [B, C, H, W], labels [B], step) is called once for
    each step of the optimizer. Returns the mean loss of each epoch.
    """
    optimizer = make_optimizer(model, recipe)
    binary_convs = [m for m in model.modules() if isinstance(m, BinaryConv2d)]
    clipped = [conv for conv in binary_convs if conv.weight.requires_grad]
    per_epoch = math.ceil(len(data) / recipe.batch_size)
    steps = recipe.epochs * per_epoch
    step, losses, running = 0, [], torch.zeros(())
    if path.is_file():
        tensors, header = checkpoint.load(path)
        running = tensors.pop("running_loss")
        checkpoint.unpack(tensors, model, optimizer, path)
        step, losses = header["step"], header["losses"]
    saved = time.monotonic()
    model.train()
    while step < steps:
        epoch, batch = divmod(step, per_epoch)
        if batch == 0:
            running = torch.zeros(())
        indices = order(len(data), seed, epoch)[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        images, labels = data.batch(indices)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, steps)
        for conv in binary_convs:
            conv.progress = step / steps
        images = augment(images, generator, **augmentation)
        if images.device.type == "cpu":  # depthwise convolutions learn up to three times as fast so
            images = images.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        loss = learn(images, labels, step)
        optimizer.step()
        for conv in clipped:
            conv.clip()
        running = running.to(loss.device) + loss
        step += 1
        if step % per_epoch == 0:
            losses = [*losses, running.item() / per_epoch]
        if step % per_epoch == 0 or time.monotonic() - saved > SAVE_EVERY_S:
            state = checkpoint.pack(model, optimizer) | {"running_loss": running}
            checkpoint.save(path, state, {"step": step, "losses": losses})
            saved = time.monotonic()
        progress(stage, step, steps)
    return losses


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], data: DeviceSplit, batch_size: int = 512) -> float:
    """Share of right arg-max, 0 to 1. The caller chooses train or eval mode."""
    right = 0
    for start in range(0, len(data), batch_size):
        images, labels = data.batch(torch.arange(start, min(start + batch_size, len(data))))
        right += int((model(images).argmax(1) == labels).sum())
    return right / len(data)
