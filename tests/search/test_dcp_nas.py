"""DCP-NAS: who learns when and from what, and that a stop changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.augment import DeviceSplit, default_augmentation, on_device
from bnas.search.backtracking import Rates
from bnas.search.binary.layers import reconstruction_loss
from bnas.search.data import load_images
from bnas.search.discrepancy import flat
from bnas.search.expected_latency import LATENCY_LOSSES, Add, ExpectedLatency
from bnas.search.latency import LatencyModel, latency_model, median_ms
from bnas.search.spaces import make_space
from bnas.search.strategies import dcp_nas
from bnas.search.strategies.bilevel import Learner
from bnas.search.strategies.dcp_nas import Course, Method, state
from bnas.search.strategies.task import SearchResult, SearchTask
from bnas.search.training.recipes import Budget, Recipe

RECIPE = Recipe(2, 16)
BUDGET = Budget(RECIPE, evaluations=4, population=4, calibration_images=64, training=RECIPE, relaxed=RECIPE)
SHORT = replace(BUDGET, relaxed=replace(RECIPE, epochs=1))
PHASE = 2  # steps of 16 images each, of two times 32 images


@pytest.fixture(scope="module")
def images() -> tuple[DeviceSplit, DeviceSplit, dict]:
    digits = load_images("digits")
    train = on_device(digits.train, "cpu", digits.mean, digits.std)
    some = replace(train, images=train.images[: 4 * 16], labels=train.labels[: 4 * 16])
    return some, on_device(digits.validation, "cpu", digits.mean, digits.std), default_augmentation(digits)


def task_in(folder: Path, latency: LatencyModel, images: tuple, stop: int = -1) -> SearchTask:
    def progress(stage: str, done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    train, validation, augmentation = images
    folder.mkdir(exist_ok=True)
    return SearchTask(
        latency=latency,
        limit_ms=median_ms(latency),
        train=train,
        validation=validation,
        augmentation=augmentation,
        budget=BUDGET,
        seed=0,
        device=torch.device("cpu"),
        folder=folder,
        progress=progress,
    )


@pytest.fixture
def task(tmp_path: Path, latency: LatencyModel, images: tuple) -> SearchTask:
    return task_in(tmp_path / "task", latency, images)


# The same values, but so large that the discrepancy and the backtracking are felt within a few steps.
LOUD = Method(discrepancy=50.0, rates=Rates(eta=0.3, eta_psi=1e5, tau=0.2))
VARIANTS = {
    "default": Method(),
    "loud": LOUD,
    "phase": replace(LOUD, tangent="phase"),
    "exact": replace(LOUD, curvature="exact"),
    "fisher": replace(LOUD, curvature="fisher_class"),
    "rank1": replace(LOUD, curvature="ggn_rank1"),
    "coupled": replace(LOUD, rates=None),
    "no discrepancy": replace(LOUD, discrepancy=0.0),
    "no reconstruction": replace(LOUD, reconstruction=0.0),
    "cosine": replace(LOUD, distance="cosine"),
}


def searched(folder: Path, latency: LatencyModel, images: tuple, method: Method, stop: int = -1) -> SearchResult:
    return dcp_nas.run(task_in(folder, latency, images, stop), method)


@pytest.mark.parametrize("variant", ["default", "phase"])
def test_a_stop_after_every_step_changes_nothing(
    variant: str, latency: LatencyModel, images: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a phase, between Parent and Child, between epochs; psi, the Parent and its tangents go on."""
    monkeypatch.setattr("bnas.search.strategies.bilevel.SAVE_EVERY_S", -1.0)  # a checkpoint after every step
    method = VARIANTS[variant]
    for stop in range(1, 2 * PHASE * RECIPE.epochs):
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "cut", latency, images, method, stop)
    assert searched(tmp_path / "cut", latency, images, method) == searched(tmp_path / "whole", latency, images, method)


def test_each_part_of_the_method_has_its_own_effect(latency: LatencyModel, images: tuple, tmp_path: Path) -> None:
    found = {
        name: dcp_nas.run(replace(task_in(tmp_path / name, latency, images), budget=SHORT), method)
        for name, method in VARIANTS.items()
    }
    assert len({result.state_hash for result in found.values()}) == len(VARIANTS)
    for result in found.values():
        assert result.state_hash != result.initial_hash
        assert all(trial.latency_ms <= median_ms(latency) for trial in result.trials)
        assert result.steps == 2 * PHASE
        assert len(result.losses) == 1
    assert max(found["loud"].curves["child psi"]) > 0
    assert "child psi" not in found["coupled"].curves


def values(learner: Learner) -> dict[str, Tensor]:
    return {k: t.clone() for k, t in learner.supernet.named_parameters()} | {"alphas": flat(state(learner).tensors())}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_parent_and_child_take_turns_and_hand_the_alphas_on(task: SearchTask) -> None:
    """psi judges the step before by the gradient after it, so it rests where that gradient is at inherited alphas."""
    course = Course(task, LOUD)
    for first in range(0, 4 * PHASE, PHASE):
        learns, rests = (course.parent, course.child) if first % (2 * PHASE) == 0 else (course.child, course.parent)
        given, held, psi = flat(state(rests).tensors()), values(rests), psi_of(learns)
        course.step(first)
        assert torch.equal(state(learns).backtracking.before, given)
        assert torch.equal(psi_of(learns), psi)
        course.step(first + 1)
        assert not torch.equal(psi_of(learns), psi)
        assert same(held, values(rests))
        assert not torch.equal(flat(state(learns).tensors()), given)


def psi_of(learner: Learner) -> Tensor:
    return state(learner).backtracking.psi.clone()


def test_a_step_moves_every_weight_or_alpha_of_its_own_network(task: SearchTask) -> None:
    course = Course(task, LOUD)
    before = values(course.parent), values(course.child)
    course.step(0)
    course.step(PHASE)
    for old, learner in zip(before, (course.parent, course.child), strict=True):
        new = values(learner)
        still = [name for name in old if torch.equal(old[name], new[name])]
        assert not [name for name in still if name.endswith(("conv.weight", "alphas", "linear.weight"))]


def seen_gradients(course: Course, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Tensor]]:
    """What each alpha step is given, by the name of the network."""
    seen: list[tuple[str, Tensor]] = []
    move = course.move

    def spy(learner: Learner, gradient: Tensor) -> None:
        seen.append(("parent" if learner is course.parent else "child", gradient.clone()))
        move(learner, gradient)

    monkeypatch.setattr(course, "move", spy)
    return seen


@pytest.mark.parametrize("name", LATENCY_LOSSES)
def test_without_discrepancy_alphas_go_down_latency_loss_of_the_divergence(
    name: str, task: SearchTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(task, limit_ms=task.latency.ms(task.latency.fastest()) * 1.01)  # so that the hinge is felt
    course = Course(task, replace(LOUD, discrepancy=0.0, latency_loss=LATENCY_LOSSES[name]()))
    course.step(0)
    seen = seen_gradients(course, monkeypatch)
    alphas = [a.clone().requires_grad_() for a in state(course.child).tensors()]
    images, labels = course.alpha_batches(0)
    gates = [a.softmax(0) for a in alphas]
    with torch.no_grad():
        target = course.parent.supernet(images, [a.softmax(0) for a in state(course.parent).tensors()])
    logits = course.child.supernet(images, gates)
    divergence = F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
    loss = LATENCY_LOSSES[name]()(divergence, ExpectedLatency(task.latency)(gates), task.limit_ms)
    course.child_alphas(images, labels)
    torch.testing.assert_close(seen[-1][1], flat(torch.autograd.grad(loss, alphas)), rtol=1e-3, atol=1e-6)


def test_latency_is_the_childs_alone_and_no_part_of_the_discrepancy(
    task: SearchTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, discrepancies = {}, {}
    for weight in (0.0, 50.0):
        for scale in (0.0, 50.0):
            method = replace(LOUD, curvature="fisher_class", discrepancy=scale, latency_loss=Add(weight))
            course = Course(task, method)
            seen = seen_gradients(course, monkeypatch)
            course.step(0)
            notes = course.step(PHASE)
            gradients[weight, scale] = dict(seen)
            discrepancies[weight, scale] = notes["discrepancy"]
    assert torch.equal(gradients[0.0, 50.0]["parent"], gradients[50.0, 50.0]["parent"])
    assert len({value.item() for value in discrepancies.values()}) == 1
    added = [gradients[weight, 50.0]["child"] - gradients[weight, 0.0]["child"] for weight in (0.0, 50.0)]
    torch.testing.assert_close(*added, rtol=1e-3, atol=1e-5)
    assert added[0].norm() > 0.01 * gradients[0.0, 0.0]["child"].norm()
    assert not torch.allclose(gradients[0.0, 0.0]["child"], gradients[50.0, 0.0]["child"], rtol=0.01)


def test_the_tangent_of_a_phase_is_the_mean_of_what_the_parent_stepped_along(
    task: SearchTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = Course(task, replace(LOUD, tangent="phase"))
    seen = seen_gradients(course, monkeypatch)
    for number in range(3 * PHASE):  # a Parent's phase, a Child's, and a Parent's again: the last one counts
        course.step(number)
    steps = [gradient for name, gradient in seen if name == "parent"]
    images, labels = course.alpha_batches(0)
    torch.testing.assert_close(course.direction(images, labels)[0], torch.stack(steps[-PHASE:]).mean(0))


def test_weights_of_the_child_go_down_divergence_and_reconstruction(task: SearchTask) -> None:
    course = Course(task, replace(LOUD, reconstruction=0.3))
    images, _ = course.train_batches(0)
    gates = [a.softmax(0) for a in state(course.child).tensors()]
    with torch.no_grad():
        target = course.parent.supernet(images, [a.softmax(0) for a in state(course.parent).tensors()])
    child = course.child.supernet
    divergence = F.kl_div(child(images, gates).log_softmax(1), target.softmax(1), reduction="batchmean")
    parameters = [p for p in child.parameters() if p.requires_grad]
    expected = torch.autograd.grad(divergence + 0.3 * reconstruction_loss(child), parameters)
    seen = []
    course.child.weight_optimizer.step = lambda: seen.extend(p.grad.clone() for p in parameters)
    course.child_weights(images)
    for found, value in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("field", ["distance", "curvature", "tangent"])
def test_an_unknown_name_is_refused(field: str) -> None:
    with pytest.raises(InputError, match="nothing"):
        Method(**{field: "nothing"})


def test_a_space_without_1_bit_candidates_is_refused(images: tuple, tmp_path: Path) -> None:
    space = make_space("shufflenet:micro:bits=32", (1, 8, 8), 10)
    latency = latency_model(space, LatencyTable(load_profile("rtx3080")))
    with pytest.raises(InputError, match="1-bit"):
        dcp_nas.run(task_in(tmp_path / "task", latency, images))


def test_autocast_is_for_gpus_alone(task: SearchTask) -> None:
    """On the CPU the numbers are those without; logits are float32 anyway."""
    notes = {autocast: Course(task, replace(LOUD, autocast=autocast)).step(0) for autocast in (False, True)}
    assert notes[True] == notes[False]
    course = Course(task, replace(LOUD, autocast=True))
    images, _ = course.train_batches(0)
    assert course.on(course.child, images)(state(course.child).tensors()).dtype == torch.float32
