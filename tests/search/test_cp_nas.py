"""CP-NAS: who is drawn, what is learnt from, who leaves, and that a stop changes nothing."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.augment import DeviceSplit, on_device
from bnas.search.binary.layers import BinaryConv2d
from bnas.search.data import load_images
from bnas.search.latency import LatencyModel, latency_model, median_ms
from bnas.search.spaces import SPACES, make_space
from bnas.search.spaces.space import NONE
from bnas.search.strategies import cp_nas
from bnas.search.strategies.bilevel import unlimited
from bnas.search.strategies.cp_nas import Course, Method, Tournament
from bnas.search.strategies.task import SearchResult, SearchTask
from bnas.search.training.recipes import Budget, Recipe

BUDGET = Budget(Recipe(4, 16), evaluations=4, population=4, calibration_images=32, training=Recipe(1))


@pytest.fixture(scope="module")
def digits() -> DeviceSplit:
    images = load_images("digits")
    split = on_device(images.train, "cpu", images.mean, images.std)
    return replace(split, images=split.images[:64], labels=split.labels[:64])


def task_in(folder: Path, latency: LatencyModel, digits: DeviceSplit, stop: int = -1) -> SearchTask:
    def progress(stage: str, done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    return SearchTask(
        latency=latency,
        limit_ms=median_ms(latency),
        train=digits,
        validation=digits,
        augmentation={"flip": False, "shift": 0},
        budget=BUDGET,
        seed=0,
        device=torch.device("cpu"),
        folder=folder,
        progress=progress,
    )


@pytest.fixture
def course(tmp_path: Path, latency: LatencyModel, digits: DeviceSplit) -> Course:
    return Course(task_in(tmp_path / "task", latency, digits), Method())


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("name", SPACES)
def test_a_round_uses_every_candidate_that_is_left_equally_often(name: str, repeats: int) -> None:
    """Exactly `repeats` times where as many are left as the round has draws, else within `repeats`; and at the end of
    the last round one is left of each decision."""
    space = make_space(name, (1, 8, 8), 10)
    course = object.__new__(Course)  # draws need no network
    course.tournament = Tournament(space, 0)
    course.task = type("Task", (), {"seed": 3})()
    course.method = Method(repeats=repeats)
    none = [torch.zeros(len(decision.candidates)) for decision in space.decisions]
    rng = np.random.default_rng(0)
    for size in range(max(course.tournament.sizes), 1, -1):
        left = course.tournament.alive()
        draws = [course.gates(size, repeat, i) for repeat in range(repeats) for i in range(size)]
        for d, candidates in enumerate(left):
            used = Counter(draw[d] for draw in draws)
            assert set(used) == set(candidates) and len(candidates) <= size
            counts = set(used.values())
            assert counts == {repeats} if len(candidates) == size else max(counts) - min(counts) <= repeats
        assert len(set(draws)) > 1
        for draw in draws:
            course.tournament.credit(draw, float(rng.random()))
        course.tournament.eliminate(size, none)
        assert [len(candidates) for candidates in course.tournament.alive()] == [min(len(c), size - 1) for c in left]
    assert all(len(candidates) == 1 for candidates in course.tournament.alive())


@pytest.mark.parametrize(("epochs", "equal_cost", "repeats", "each"), [
    (1, True, 1, 1), (9, True, 2, 1), (40, True, 3, 2), (40, False, 3, 5), (270, True, 3, 20)
])  # fmt: skip
def test_a_budget_is_shared_out_among_the_draws(
    epochs: int, equal_cost: bool, repeats: int, each: int, tmp_path: Path, latency: LatencyModel, digits: DeviceSplit
) -> None:
    """4 batches in an epoch, and T (4 + 3 + 2) draws: T up to 3 as long as there is a step for each draw."""
    budget = replace(BUDGET, supernet=Recipe(epochs, 16), equal_cost=equal_cost)
    course = Course(replace(task_in(tmp_path / "task", latency, digits), budget=budget), Method())
    assert (len(course.draws), course.per_draw) == (9 * repeats, each)


def test_the_worst_by_mean_z_leaves_and_e_is_a_softmax(latency: LatencyModel) -> None:
    """Four candidates of the first decision with z 0.5, 0.1 and 0.5 (mean 0.3), 0.4, 0.6: the second leaves."""
    tournament = Tournament(latency.space, 0)
    rest = [0] * (len(tournament.sizes) - 1)
    for candidate, z in ((0, 0.5), (1, 0.1), (1, 0.5), (2, 0.4), (3, 0.6)):
        tournament.credit((candidate, *rest), z)
    none = [torch.zeros(size) for size in tournament.sizes]
    tournament.eliminate(4, none)
    assert tournament.alive()[0] == [0, 2, 3]
    powers = np.exp([0.5, 0.3, 0.4, 0.6])
    np.testing.assert_allclose(tournament.values[0].numpy(), powers / powers.sum(), rtol=1e-6)
    kept = tournament.probabilities()[0]
    np.testing.assert_allclose(kept, np.array([1, 0, 1, 1]) + powers / powers.sum(), rtol=1e-6)
    for candidate, z in ((0, 0.5), (2, 0.4), (3, 0.6)):  # what was in an earlier round counts no more
        tournament.credit((candidate, *rest), z)
    tournament.eliminate(3, [torch.tensor([0.0, 0.0, 0.0, 0.3]), *none[1:]])  # 0.6 - 0.3 is the worst now
    assert tournament.alive()[0] == [0, 2]


def test_the_architecture_without_a_limit_is_made_of_those_that_are_left(rng: np.random.Generator) -> None:
    for name in SPACES:
        space = make_space(name, (1, 8, 8), 10)
        tournament = Tournament(space, 0)
        none = [torch.zeros(size) for size in tournament.sizes]
        for size in range(max(tournament.sizes), 1, -1):
            for draw in rng.random((40, len(tournament.sizes))):
                left = tournament.alive()
                taken = [candidates[int(x * len(candidates))] for candidates, x in zip(left, draw, strict=True)]
                tournament.credit(taken, float(rng.random()))
            tournament.eliminate(size, none)
        gates = space.gates(unlimited(space, tournament.probabilities()))
        winners = [candidates[0] for candidates in tournament.alive()]
        taken = [d for d, decision in enumerate(space.decisions) if decision.candidates[gates[d]] != NONE]
        real = [d for d in taken if space.decisions[d].candidates[winners[d]] != NONE]
        assert [gates[d] for d in real] == [winners[d] for d in real] and len(real) > len(taken) / 2


def test_z_is_what_the_paper_says(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course.pair.parent, "forward", lambda images, gates: 0.7)
    monkeypatch.setattr(course.pair.child, "forward", lambda images, gates: 0.4)
    monkeypatch.setattr(cp_nas, "accuracy", lambda path, data: path(None))
    for potential, z in ((0.0, 0.4), (0.5, 0.55), (1.0, 0.7), (2.0, 1.0)):  # 4.15: beta (0.7 - 0.4) + 0.4
        course.method = Method(potential=potential)
        course.tournament.total.zero_()
        gates = course.gates(*course.draws[0])
        course.judge(gates)
        starts = np.cumsum([0, *course.tournament.sizes[:-1]])
        want = np.zeros(sum(course.tournament.sizes))
        want[starts + np.array(gates)] = z
        np.testing.assert_allclose(course.tournament.total.numpy(), want, rtol=1e-12)


def test_accuracies_are_of_the_path_with_batch_statistics_and_leave_no_trace(course: Course) -> None:
    gates = course.gates(*course.draws[0])
    before = {name: value.clone() for name, value in course.pair.state_dict().items()}
    notes = course.judge(gates)
    assert all(torch.equal(value, before[name]) for name, value in course.pair.state_dict().items())
    images, labels = course.task.validation.batch(torch.arange(64))
    fresh = Course(course.task, course.method).pair
    with torch.no_grad():
        right = [float((net(images, gates).argmax(1) == labels).double().mean()) for net in (fresh.parent, fresh.child)]
    assert [float(notes["parent accuracy"]), float(notes["architecture accuracy"])] == pytest.approx(right)


def test_only_what_was_drawn_learns_in_both_networks(course: Course) -> None:
    before = {name: p.detach().clone() for name, p in course.pair.named_parameters()}
    gates = course.gates(*course.draws[0])
    course.learner.at(0, course.steps)
    course.learn(gates, *course.batches(0))
    ran = {f"{net}.{step.name}." for net in ("parent", "child") for step in cp_nas.on_path(course.task.space, gates)}
    for name, parameter in course.pair.named_parameters():
        drawn = any(name.startswith(path) for path in ran)
        assert (parameter.grad is not None) == drawn, name
        assert drawn or torch.equal(parameter, before[name]), name
    moved = {name for name, p in course.pair.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == {"parent", "child"}


def test_parent_and_child_start_alike_and_share_nothing(course: Course) -> None:
    parent, child = (dict(net.named_parameters()) for net in (course.pair.parent, course.pair.child))
    assert parent.keys() < child.keys() and all(torch.equal(parent[name], child[name]) for name in parent)
    assert not {p.data_ptr() for p in parent.values()} & {p.data_ptr() for p in child.values()}
    assert not any(isinstance(module, BinaryConv2d) for module in course.pair.parent.modules())


def test_the_childs_loss_is_cross_entropy_and_both_parts_of_l_h(course: Course) -> None:
    gates, (images, labels) = course.gates(*course.draws[0]), course.batches(0)
    notes = course.learn(gates, images, labels)
    fresh = Course(replace(course.task, folder=course.task.folder), course.method).pair.child
    with torch.no_grad():
        seen = []
        fresh.get_submodule(course.task.space.template[-1].name).register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0])
        )
        logits = fresh(images, gates)
        want = F.cross_entropy(logits, labels, label_smoothing=course.learner.recipe.label_smoothing)
        features = seen[0].mean((2, 3))
        spread = 0.0
        for label in labels.unique():
            of_class = features[labels == label]
            spread += 0.5 * float((of_class - of_class.mean(0)).square().sum()) / len(labels)
        kernel = 0.0
        for name, module in fresh.named_modules():
            steps = [step.name for step in cp_nas.on_path(course.task.space, gates)]
            if isinstance(module, BinaryConv2d) and any(name.startswith(f"{step}.") for step in steps):
                binary = torch.where(module.weight < 0, -1.0, 1.0) * module.beta
                kernel += float((module.weight - binary).square().mean((1, 2, 3)).sum())
    assert float(notes["loss"]) == pytest.approx(float(want), rel=1e-5)
    assert float(notes["compactness loss"]) == pytest.approx(spread, rel=1e-5)
    assert float(notes["kernel loss"]) == pytest.approx(kernel, rel=1e-5) and kernel > 0


def test_slow_candidates_lose_only_while_the_limit_is_missed(
    tmp_path: Path, latency: LatencyModel, digits: DeviceSplit
) -> None:
    """All z are equal: without pressure the first candidate of each decision leaves, with it the slowest."""
    task = task_in(tmp_path / "task", latency, digits)
    for limit, pressed in ((10 * median_ms(latency), False), (latency.ms(latency.fastest()) * 1.001, True)):
        course = Course(replace(task, limit_ms=limit), Method())
        course.end_round(4)
        for left, ms in zip(course.tournament.alive(), latency.decision_ms, strict=True):
            if len(ms) == 4:
                gone = ({0, 1, 2, 3} - set(left)).pop()
                assert gone == (int(ms.argmax()) if pressed else 0)


def test_none_does_not_look_fast() -> None:
    model = latency_model(make_space("cells", (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))
    everything = [list(range(len(ms))) for ms in model.decision_ms]
    largest = max(ms.max() for ms in model.decision_ms)
    for decision, share, ms in zip(
        model.space.decisions, cp_nas.latency_shares(model, everything), model.decision_ms, strict=True
    ):
        none = decision.candidates.index(NONE)
        real = np.delete(ms, none)
        assert float(share[none]) == pytest.approx(real.mean() / largest)
        np.testing.assert_allclose(np.delete(share.numpy(), none), real / largest)


def searched(folder: Path, latency: LatencyModel, digits: DeviceSplit, stop: int = -1) -> SearchResult:
    return cp_nas.run(task_in(folder, latency, digits, stop))


def test_a_stop_after_any_step_changes_nothing(
    latency: LatencyModel, digits: DeviceSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside of a draw, between draws of a round, between rounds: who is left and what is known of them goes on."""
    monkeypatch.setattr("bnas.search.strategies.bilevel.SAVE_EVERY_S", -1.0)  # a checkpoint after every step
    whole = searched(tmp_path / "whole", latency, digits)
    for stop in range(1, whole.steps, 2):
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "cut", latency, digits, stop)
    assert searched(tmp_path / "cut", latency, digits) == whole
    assert whole.state_hash != whole.initial_hash
    assert len(whole.course) == 3 and len(whole.losses) == 4 + 3 + 2
    assert whole.curves["candidates left"][-1] == 1
    assert all(trial.latency_ms <= median_ms(latency) for trial in whole.trials)


def test_a_space_without_1_bit_candidates_is_refused(digits: DeviceSplit, tmp_path: Path) -> None:
    space = make_space("shufflenet:micro:bits=32", (1, 8, 8), 10)
    latency = latency_model(space, LatencyTable(load_profile("rtx3080")))
    with pytest.raises(InputError, match="1-bit"):
        cp_nas.run(task_in(tmp_path / "task", latency, digits))
