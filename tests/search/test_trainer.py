"""Training: a resumed run equals the uninterrupted one, decay spares 1-bit weights, checkpoints are whole or absent."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from bnas.profiles.errors import InputError
from bnas.search import checkpoint
from bnas.search.augment import DeviceSplit, on_device
from bnas.search.data import load_images
from bnas.search.spaces import make_space
from bnas.search.supernet import Supernet
from bnas.search.training import trainer
from bnas.search.training.recipes import BUDGETS, Recipe, budget

SPACE = make_space("tiny", (1, 8, 8), 10)
RECIPE = Recipe(epochs=3, batch_size=64)


@pytest.fixture(scope="module")
def digits() -> DeviceSplit:
    images = load_images("digits")
    split = on_device(images.train, "cpu", images.mean, images.std)
    return DeviceSplit(split.images[:160], split.labels[:160], split.mean, split.std)


def gates(step: int) -> tuple[int, ...]:
    """The gates of a random architecture, a function of the step alone."""
    return SPACE.gates(SPACE.indices(SPACE.random(np.random.default_rng(step))))


def train(digits: DeviceSplit, path: Path, stop_at: int = 10**9) -> tuple[str, list[float]]:
    torch.manual_seed(0)
    supernet = Supernet(SPACE)

    def progress(stage: str, done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    losses = trainer.fit(
        supernet, trainer.descend(lambda x, step: supernet(x, gates(step)), RECIPE), digits, RECIPE, seed=0,
        augmentation={"flip": False, "shift": 1}, path=path, stage="supernet", progress=progress,
    )  # fmt: skip
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in supernet.state_dict().values())).hexdigest()
    return digest, losses


@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
@pytest.mark.parametrize("save_every_s", [0.0, 30.0])
def test_a_stop_at_any_step_changes_nothing(
    digits: DeviceSplit, tmp_path: Path, stop_at: int, save_every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With save_every_s = 0 every step is saved, so the run goes on in the middle of an epoch."""
    monkeypatch.setattr(trainer, "SAVE_EVERY_S", save_every_s)
    whole = train(digits, tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(digits, tmp_path / "cut.safetensors", stop_at)
    assert train(digits, tmp_path / "cut.safetensors") == whole
    assert whole[1][-1] < whole[1][0]


def test_a_kill_inside_a_checkpoint_write_keeps_the_old_one(
    digits: DeviceSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(digits, tmp_path / "whole.safetensors")
    path = tmp_path / "cut.safetensors"
    writes = 0
    real = checkpoint.atomic.os.replace

    def dies(source: str, target: str) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(checkpoint.atomic.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        train(digits, path)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert checkpoint.load(path)[1]["step"] == 3  # the first epoch's, whole
    monkeypatch.undo()
    assert train(digits, path) == whole


def test_truncated_and_foreign_checkpoints_are_named(digits: DeviceSplit, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    train(digits, path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"c\.safetensors is truncated or corrupt") as error:
            train(digits, path)
        assert "\n" not in str(error.value)
    checkpoint.save(path, {"model.x": torch.zeros(1), "running_loss": torch.zeros(())}, {"step": 1, "losses": []})
    with pytest.raises(InputError, match="another network"):
        train(digits, path)


def test_decay_never_touches_binary_weights() -> None:
    supernet = Supernet(SPACE)
    optimizer = trainer.make_optimizer(supernet, RECIPE)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name for name, p in supernet.named_parameters() if id(p) in decayed}
    assert names == {"stem0.conv.weight", "head.linear.weight"}
    assert optimizer.param_groups[1]["weight_decay"] == 0


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [trainer.learning_rate(RECIPE, step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([RECIPE.learning_rate * k / 5 for k in (1, 2, 3, 4, 5)])
    assert max(rates) == RECIPE.learning_rate and rates[-1] < 0.01 * RECIPE.learning_rate
    assert np.all(np.diff(rates[5:]) < 0)


def test_budgets_grow_and_unknown_ones_are_named() -> None:
    assert BUDGETS["smoke"].evaluations < BUDGETS["default"].evaluations < BUDGETS["paper"].evaluations
    with pytest.raises(InputError, match="did you mean 'smoke'"):
        budget("smok")
