"""The bilevel loop and its first methods: exact gradients, who learns when, when it stops, kill and resume."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search import second_order
from bnas.search.augment import DeviceSplit, default_augmentation, on_device
from bnas.search.binary.layers import BinaryConv2d
from bnas.search.data import load_images
from bnas.search.expected_latency import Add
from bnas.search.latency import LatencyModel, latency_model, median_ms
from bnas.search.relaxations import Alphas, Probabilities
from bnas.search.second_order import PRODUCTS, gradients, trained, undisturbed
from bnas.search.spaces import SearchSpace, make_space
from bnas.search.strategies import amended_darts, bilevel, darts, darts_plus, darts_second, gdas, snas
from bnas.search.strategies.amended_darts import amended
from bnas.search.strategies.bilevel import AlphaRecipe, Batches, Method, Problem, first_order, halves, unlimited
from bnas.search.strategies.darts_second import unrolled
from bnas.search.strategies.task import SearchResult, SearchTask
from bnas.search.supernet import Supernet
from bnas.search.training.recipes import Budget, Recipe

METHODS: dict[str, ModuleType] = {
    "darts": darts,
    "darts-second": darts_second,
    "amended-darts": amended_darts,
    "darts-plus": darts_plus,
    "gdas": gdas,
    "snas": snas,
}
CELLS = make_space("cells", (1, 8, 8), 10)


@pytest.fixture(scope="module")
def digits() -> DeviceSplit:
    images = load_images("digits")
    split = on_device(images.train, "cpu", images.mean, images.std)
    return DeviceSplit(split.images[:64], split.labels[:64], split.mean, split.std)


def task_for(
    latency: LatencyModel, digits: DeviceSplit, folder: Path, *, epochs: int = 2, batch: int = 16
) -> SearchTask:
    folder.mkdir(exist_ok=True)
    return SearchTask(
        latency=latency,
        limit_ms=median_ms(latency),
        train=digits,
        validation=digits,
        augmentation=default_augmentation(load_images("digits")),
        budget=Budget(Recipe(epochs, batch), evaluations=6, population=4, calibration_images=16, training=Recipe(1)),
        seed=0,
        device=torch.device("cpu"),
        folder=folder,
        progress=lambda stage, done, total: None,
    )


# Gradients of alphas


class TwoLayers(nn.Module):
    """A mixture of three activations between two linear maps, in float64: everything has second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6).double(), nn.Linear(6, 3).double()

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        h, p = self.first(x), alpha.softmax(0)
        return self.second(p[0] * h.tanh() + p[1] * h.sigmoid() + p[2] * h)


Loss = Callable[[dict[str, Tensor], Tensor], Tensor]


def two_layers(rate: float) -> tuple[Problem, Loss, Loss]:
    """The problem, and its losses on train and validation as functions of given weights."""
    torch.manual_seed(0)
    model = TwoLayers()
    alpha = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(2, 20, 5, dtype=torch.float64), torch.randint(0, 3, (2, 20))

    def loss(i: int, weights: dict[str, Tensor], at: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, weights, (x[i], at)), y[i])

    def now(i: int) -> Tensor:
        return nn.functional.cross_entropy(model(x[i], alpha), y[i])

    problem = Problem(lambda: now(0), lambda: now(1), model, [alpha], rate)
    return problem, partial(loss, 0), partial(loss, 1)


def relative(found: Tensor, want: Tensor) -> float:
    return float((found - want).norm() / want.norm())


@pytest.mark.parametrize("products", PRODUCTS)
def test_second_order_is_the_exact_gradient_through_the_virtual_step(products: str) -> None:
    problem, train, validation = two_layers(rate=0.5)
    (alpha,), weights = problem.alphas, dict(problem.model.named_parameters())
    slopes = torch.autograd.grad(train(weights, alpha), list(weights.values()), create_graph=True)
    moved = {name: w - 0.5 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
    (want,) = torch.autograd.grad(validation(moved, alpha), alpha)
    (found,) = unrolled(problem, PRODUCTS[products])
    assert relative(found, want) < 1e-3
    assert relative(first_order(problem)[0], want) > 0.01  # the step matters here, so the test can fail


@pytest.mark.parametrize("products", PRODUCTS)
def test_amended_is_minus_eta_m_h_v(products: str) -> None:
    problem, train, validation = two_layers(rate=0.5)
    (alpha,), weights = problem.alphas, dict(problem.model.named_parameters())
    names, values = list(weights), list(weights.values())
    direct, *v = torch.autograd.grad(validation(weights, alpha), [alpha, *values])

    def slopes(at: Tensor) -> Tensor:
        found = torch.autograd.grad(train(dict(zip(names, values, strict=True)), at), values, create_graph=True)
        return torch.cat([g.flatten() for g in found])

    flat_v = torch.cat([g.flatten() for g in v])
    hv = torch.autograd.grad(slopes(alpha) @ flat_v, values)
    flat_hv = torch.cat([g.flatten() for g in hv]).detach()
    (mhv,) = torch.autograd.grad(slopes(alpha) @ flat_hv, alpha)
    (found,) = amended(problem, 0.1, products=PRODUCTS[products])
    assert relative(direct - found, 0.1 * mhv) < 1e-3
    want = 0.1 * mhv.norm() / direct.norm()
    assert problem.notes["amendment"].item() == pytest.approx(want.item(), rel=1e-3)
    (limited,) = amended(problem, 0.1, 0.5 * want.item(), PRODUCTS[products])
    assert relative(direct - limited, 0.05 * mhv) < 1e-3


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))


def test_the_amended_term_can_point_against_the_true_one() -> None:
    """L_train = w'Hw/2 + alpha M w with H = diag(1, 100), M = [1, -1]; L_val = v'w with v = (1, 1/2).

    True: -M H^-1 v = -(1 - 0.005); amended: -eta M H v = -eta (1 - 50).
    """
    model, alpha = Quadratic(), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    h, m, v = torch.tensor([[1.0, 100.0], [1.0, -1.0], [1.0, 0.5]], dtype=torch.float64)
    problem = Problem(
        lambda: (h * model.w.square()).sum() / 2 + alpha[0] * (m @ model.w), lambda: v @ model.w, model, [alpha], 0.1
    )
    assert amended(problem, eta=0.1)[0].item() == pytest.approx(4.9)


@pytest.mark.parametrize("gradient", [first_order, unrolled, partial(amended, eta=0.1)])
def test_architecture_steps_leave_weights_statistics_and_gradients_alone(
    gradient: bilevel.ArchGradient, latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    """First order may move running statistics (its one pass is that of training); nothing else may."""
    course = course_of(task_for(latency, digits, tmp_path), Method(gradient=gradient))
    model = course.learner.supernet.train()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    if gradient is first_order:
        before = {name: before[name] for name, _ in model.named_parameters()}
    alphas = [alpha.detach().clone() for alpha in course.learner.alphas.parameters()]
    course.alphas_learn(0, course.train_batches(0))
    after = model.state_dict()
    statistics = ("running", "batches", "range", "low", "high", "scale", "zero_point")
    for name, value in before.items():
        if gradient is not first_order and any(word in name for word in statistics):
            continue
        assert torch.equal(value, after[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1 and not frozen.requires_grad
    assert any(not torch.equal(a, b) for a, b in zip(alphas, course.learner.alphas.parameters(), strict=True))


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_product_with_nothing_is_nothing_and_puts_everything_back(products: str) -> None:
    problem, _, _ = two_layers(rate=0.5)
    weights = list(problem.model.parameters())
    before = [w.detach().clone() for w in weights]
    product = PRODUCTS[products](problem.train, problem.model)
    (found,) = product([torch.zeros_like(w) for w in weights], problem.alphas)
    assert torch.equal(found, torch.zeros_like(found))
    product([torch.randn_like(w) for w in weights], weights)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def loss_of(text: str) -> tuple[Callable[[], Tensor], Supernet, list[Tensor]]:
    """Cross-entropy of a supernet in float64, the supernet, and the alphas."""
    torch.manual_seed(0)
    space = make_space(text, (1, 8, 8), 10)
    model = Supernet(space).double()
    alphas = [torch.zeros(len(d.candidates), dtype=torch.float64, requires_grad=True) for d in space.decisions]
    x, y = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.randint(0, 10, (4,))
    return lambda: nn.functional.cross_entropy(model(x, [a.softmax(0) for a in alphas]), y), model, alphas


@pytest.mark.parametrize("text", ["shufflenet:micro:bits=32", "mobilenet:micro:bits=32", "cells:micro:bits=32"])
def test_over_a_way_that_turns_no_relu_on_both_products_agree(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_order, "SHIFT", 1e-8)
    loss, model, alphas = loss_of(text)
    weights = trained(model)
    v = gradients(loss(), weights)
    for wanted in (alphas, weights):
        exact, slope = (torch.cat([g.flatten() for g in PRODUCTS[n](loss, model)(v, wanted)]) for n in PRODUCTS)
        assert relative(slope, exact) < 1e-3


@pytest.mark.parametrize("text", ["tiny", "cells"])
def test_the_hessian_of_a_1_bit_network_is_symmetric(text: str) -> None:
    """It is that of a smooth network with the same values and the surrogates' derivatives, whose u.Hv is v.Hu."""
    loss, model, _ = loss_of(text)
    weights = trained(model)
    product = PRODUCTS["exact"](loss, model)
    u, v = ([torch.randn_like(w) for w in weights] for _ in range(2))
    across, back = (
        float(sum((a * b).sum() for a, b in zip(x, product(y, weights), strict=True))) for x, y in ((u, v), (v, u))
    )
    assert across == pytest.approx(back, rel=1e-9) and abs(across) > 1e-3


def test_undisturbed_puts_running_statistics_back() -> None:
    norm = nn.BatchNorm2d(3)
    with undisturbed(norm):
        norm(torch.randn(4, 3, 2, 2) + 5)
    assert torch.equal(norm.running_mean, torch.zeros(3)) and norm.num_batches_tracked == 0


# Who learns what, and when


def course_of(task: SearchTask, method: Method) -> bilevel.Course:
    return bilevel.Course(task, method, bilevel.make_learner(task, method))


@pytest.mark.parametrize("name", METHODS)
def test_each_optimizer_knows_its_own_parameters_only(
    name: str, latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    learner = course_of(task_for(latency, digits, tmp_path), METHODS[name].METHOD).learner
    weights = {id(p) for group in learner.weight_optimizer.param_groups for p in group["params"]}
    alphas = {id(p) for group in learner.alpha_optimizer.param_groups for p in group["params"]}
    assert weights == {id(p) for p in learner.supernet.parameters()}
    assert alphas == {id(p) for p in learner.alphas.parameters()}
    assert not weights & alphas


@pytest.mark.parametrize(
    ("name", "want"),
    [("darts", ["alphas", "weights"]), ("gdas", ["weights", "alphas"]), ("snas", ["weights", "alphas"])],
)
def test_the_order_of_the_two_steps(
    name: str, want: list[str], latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    """SNAS takes both after one pass on one batch, the others after a pass each on batches that share no image."""
    course = course_of(task_for(latency, digits, tmp_path), METHODS[name].METHOD)
    learner, seen, log = course.learner, [], []
    learner.supernet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    learner.weight_optimizer.register_step_pre_hook(lambda *_: log.append("weights"))
    learner.alpha_optimizer.register_step_pre_hook(lambda *_: log.append("alphas"))
    course.step(0)
    assert log == want
    assert len(seen) == (1 if name == "snas" else 2)
    if name != "snas":
        first, second = ({image.numpy().tobytes() for image in batch} for batch in seen)
        assert not first & second


def test_halves_share_no_image_and_leave_none_out(digits: DeviceSplit) -> None:
    first, second = halves(digits, 0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(64)) and len(first) == len(second)
    assert torch.equal(first, halves(digits, 0)[0]) and not torch.equal(first, halves(digits, 1)[0])
    one = DeviceSplit(digits.images[:1], digits.labels[:1], digits.mean, digits.std)
    with pytest.raises(InputError, match="2 or more training images, got 1"):
        halves(one, 0)


@pytest.mark.parametrize("size", [1, 7, 16, 21, 100])
def test_an_epoch_of_batches_shows_every_image_and_all_are_of_one_size(digits: DeviceSplit, size: int) -> None:
    numbered = DeviceSplit(digits.images, torch.arange(64), digits.mean, digits.std)
    indices = torch.arange(3, 24)
    of = partial(Batches, numbered, indices, size, augmentation={"flip": False, "shift": 1})
    batches = of(seed=0, tag=1)
    epochs = [[batches(e * batches.per_epoch + i)[1] for i in range(batches.per_epoch)] for e in range(2)]
    for epoch in epochs:
        assert {len(labels) for labels in epoch} == {min(size, 21)}
        assert set(torch.cat(epoch).tolist()) == set(indices.tolist())
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    again = of(seed=0, tag=1)(batches.per_epoch)  # asked out of order
    assert torch.equal(again[1], epochs[1][0]) and torch.equal(again[0], batches(batches.per_epoch)[0])
    assert size in (1, 100) or not torch.equal(of(seed=0, tag=2)(0)[1], epochs[0][0])


def test_in_the_warm_up_only_weights_learn(latency: LatencyModel, digits: DeviceSplit, tmp_path: Path) -> None:
    task = task_for(latency, digits, tmp_path, epochs=4)
    found = bilevel.search(task, Method(warmup=0.5))
    trace = read_trace(task)
    start = torch.from_numpy(np.concatenate(Alphas(task.space, 0).probabilities()))
    assert torch.equal(trace[1], start) and not torch.equal(trace[2], start)
    assert len(found.losses) == 4 and len(found.curves["architecture loss"]) == 2


def read_trace(task: SearchTask) -> list[Tensor]:
    method = Method()
    learner = bilevel.make_learner(task, method)
    return bilevel.Record.load(task.folder / "supernet.safetensors", {"learner": learner}).trace


def test_latent_weights_stay_where_their_gradient_is(
    latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    task = task_for(latency, digits, tmp_path)
    task = replace(task, budget=replace(task.budget, supernet=Recipe(1, 16, learning_rate=5.0)))
    course = course_of(task, Method())
    course.step(0)
    weights = [m.weight for m in course.learner.supernet.modules() if isinstance(m, BinaryConv2d)]
    assert weights and max(float(w.abs().max()) for w in weights) == 1.0


def test_a_latency_loss_makes_the_expected_network_faster(
    latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    method = Method(latency_loss=Add(weight=1000.0), alpha_recipe=AlphaRecipe(learning_rate=0.3))
    found = bilevel.search(task_for(latency, digits, tmp_path, epochs=5), method)
    fastest = latency.ms(latency.fastest())
    expected = found.curves["expected latency ms"]
    assert expected[-1] - fastest < 0.2 * (expected[0] - fastest)
    assert found.best.architecture == latency.fastest()


# Results


def darts_rule(kept: Probabilities) -> set[tuple[int, int]]:
    """(edge, operation) pairs as DARTS picks them, written for cells with 14 edges a type, `none` first."""
    chosen = set()
    for offset in (0, 14):
        edge = offset
        for node in range(2, 6):
            edges = list(range(edge, edge + node))
            edge += node
            for e in sorted(edges, key=lambda e: -kept[e][1:].max())[:2]:
                chosen.add((e, 1 + int(kept[e][1:].argmax())))
    return chosen


def test_without_a_limit_cells_are_derived_by_the_rule_of_darts(tmp_path: Path, digits: DeviceSplit) -> None:
    model = latency_model(CELLS, LatencyTable(load_profile("rtx3080")))
    task = replace(task_for(model, digits, tmp_path), limit_ms=1e9)
    for seed in range(5):
        kept = Alphas(CELLS, seed, deviation=1.0).probabilities()
        record = bilevel.Record(losses=[0.0])
        found = bilevel.derive(task, kept, record, "", "", bilevel.Stopwatch())
        indices = CELLS.indices(found.best.architecture)
        assert indices == unlimited(CELLS, kept)
        taken = {pair for gene, i in zip(CELLS.genes, indices, strict=True) for pair in gene.settings[i]}
        assert taken == darts_rule(kept)


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0])
def test_the_architecture_keeps_most_probability_under_the_limit(
    limit: float, latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    """Against all architectures of a small space. limit: where between the fastest and the slowest."""
    low, high = (latency.fixed_ms + sum(f(ms) for ms in latency.candidate_ms) for f in (np.min, np.max))
    task = replace(task_for(latency, digits, tmp_path), limit_ms=float(low + limit * (high - low)) * (1 + 1e-12))
    kept = Alphas(latency.space, 0, deviation=1.0).probabilities()
    grids = np.meshgrid(*[np.arange(len(p)) for p in kept], indexing="ij")
    score = sum(p[grid] for p, grid in zip(kept, grids, strict=True))
    ms = latency.fixed_ms + sum(row[grid] for row, grid in zip(latency.candidate_ms, grids, strict=True))
    found = bilevel.derive(task, kept, bilevel.Record(), "", "", bilevel.Stopwatch())
    assert found.best.score == pytest.approx(score[ms <= task.limit_ms].max())
    assert all(trial.latency_ms <= task.limit_ms for trial in found.trials)


@pytest.mark.parametrize("name", METHODS)
def test_an_impossible_limit_is_refused_before_any_work(
    name: str, latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    task = replace(task_for(latency, digits, tmp_path), limit_ms=latency.ms(latency.fastest()) / 2)
    with pytest.raises(InputError, match="no architecture"):
        METHODS[name].run(task)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def whole(
    latency: LatencyModel, digits: DeviceSplit, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SearchResult]:
    """The result of each method, on the smallest space."""
    return {n: m.run(task_for(latency, digits, tmp_path_factory.mktemp(n), epochs=3)) for n, m in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_alphas_move_and_the_limit_holds(name: str, whole: dict[str, SearchResult], latency: LatencyModel) -> None:
    found = whole[name]
    assert found.state_hash != found.initial_hash
    assert all(trial.latency_ms <= median_ms(latency) for trial in found.trials)
    assert found.best == found.trials[0] and latency.ms(found.best.architecture) == found.best.latency_ms
    assert found.certificate is not None and "optimal" in found.certificate
    assert len(found.losses) == len(found.curves["alpha entropy"]) and np.isfinite(found.losses).all()


def test_no_two_methods_learn_the_same(whole: dict[str, SearchResult]) -> None:
    for a, b in combinations(whole, 2):
        assert whole[a].state_hash != whole[b].state_hash, (a, b)


@pytest.mark.parametrize("stop_at", [1, 2])
@pytest.mark.parametrize("save_every_s", [0.0, 30.0])
@pytest.mark.parametrize("name", METHODS)
def test_a_stop_at_any_step_changes_nothing(
    name: str,
    save_every_s: float,
    stop_at: int,
    whole: dict[str, SearchResult],
    latency: LatencyModel,
    digits: DeviceSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With save_every_s = 0 every step is saved, so the search goes on in the middle of an epoch; step 2 ends one, and
    with it the search of DARTS+ here."""
    monkeypatch.setattr(bilevel, "SAVE_EVERY_S", save_every_s)

    def progress(stage: str, done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    task = task_for(latency, digits, tmp_path, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        METHODS[name].run(replace(task, progress=progress))
    assert METHODS[name].run(task) == whole[name]


def test_a_checkpoint_of_another_network_is_named(latency: LatencyModel, digits: DeviceSplit, tmp_path: Path) -> None:
    darts.run(task_for(latency, digits, tmp_path, epochs=1))
    other = latency_model(make_space("tiny", (1, 16, 16), 4), LatencyTable(load_profile("rtx3080")))
    with pytest.raises(InputError, match=r"supernet\.safetensors belongs to another network"):
        darts.run(task_for(other, digits, tmp_path, epochs=1))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_its_source(name: str) -> None:
    assert any(character.isdigit() for character in METHODS[name].SOURCE)


# When DARTS+ stops


def synthetic(space: SearchSpace, favourites: dict[int, str], order: int = 0) -> Probabilities:
    """Probabilities in which `favourites` win; the others fall with their number, the last four rotated by `order`."""
    kept = []
    for d, decision in enumerate(space.decisions):
        p = np.arange(len(decision.candidates), 0, -1.0)
        p[-4:] = np.roll(p[-4:], order)
        p[decision.candidates.index("none")] = 0.5
        if d in favourites:
            p[decision.candidates.index(favourites[d])] = 100
        kept.append(p / p.sum())
    return tuple(kept)


def skipping(count: int, order: int = 0) -> Probabilities:
    """Cells whose derived normal cell has `count` skips, and whose reduction cell has eight."""
    edges = [0, 1, 2, 3, 5, 6, 9, 10]  # two that lead to each node
    names = {e: "skip_connect" if i < count else "bin_conv_3x3" for i, e in enumerate(edges)}
    return synthetic(CELLS, names | {14 + e: "skip_connect" for e in edges}, order)


@pytest.mark.parametrize(
    ("counts", "want"),
    [
        ([0, 0, 0, 1, 1, 1], None),  # one skip is not two, whatever the reduction cell has
        ([0, 0, 1, 2], 3),
        ([0, 0, 1, 3], 2),  # more than two at once: the epoch before
        ([2], None),  # too early: 10 epochs are a fifth of 50
    ],
)
def test_two_skips_in_the_normal_cell_stop(counts: list[int], want: int | None) -> None:
    trace = [skipping(count, order) for order, count in enumerate(counts)]
    assert darts_plus.at_skips(CELLS, trace, epochs=10) == want
    assert all(darts_plus.at_skips(CELLS, trace[:n], epochs=10) is None for n in range(1, len(trace)))
    assert darts_plus.either(CELLS, trace, epochs=10) == want


def test_skips_are_counted_in_all_layers_of_a_chain() -> None:
    space = make_space("mobilenet", (1, 8, 8), 10)
    places = [d for d, decision in enumerate(space.decisions) if "identity" in decision.candidates]
    kept = [np.full(len(d.candidates), 1 / len(d.candidates)) for d in space.decisions]
    for d in places[:2]:
        kept[d] = np.array([float(name == "identity") for name in space.decisions[d].candidates])
    assert darts_plus.skips(space, tuple(kept)) == 2


def test_an_order_of_the_convolutions_that_rests_stops() -> None:
    """A fifth of 20 epochs: four epochs without a change. Pools, skips and none may change places as they like."""
    moving = [synthetic(CELLS, {}, order) for order in (0, 1, 2)]
    resting = []
    for name in ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "none", "max_pool_3x3", "none"):
        resting.append(synthetic(CELLS, dict.fromkeys(range(28), name), order=2))
    trace = [*moving, *resting]
    found = [darts_plus.at_rest(CELLS, trace[:n], epochs=20) for n in range(1, len(trace) + 1)]
    assert found == [None] * 6 + [6, 7, 8]  # the order of epoch 2 is that of epochs 3, 4, 5 and 6


def test_a_stop_rule_ends_the_search_and_says_what_is_derived(
    latency: LatencyModel, digits: DeviceSplit, tmp_path: Path
) -> None:
    task = replace(task_for(latency, digits, tmp_path, epochs=5), limit_ms=1e9)
    found = bilevel.search(task, Method(stop=lambda space, trace, epochs: 0 if len(trace) == 2 else None))
    trace = read_trace(task)
    assert len(trace) == len(found.losses) == 2 and found.steps == 4
    assert latency.space.indices(found.best.architecture) == unlimited(
        latency.space, Alphas(latency.space, 0).split(trace[0])
    )
