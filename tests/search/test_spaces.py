"""Spaces: every operation stays inside, texts and files round-trip, and the sizes are those of the papers."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles import cost
from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.profiles.workload import Workload
from bnas.search.latency import latency_model
from bnas.search.spaces import SPACES, Architecture, SearchSpace, make_space, reference, references, space_of
from bnas.search.spaces.wiring import Choice, Step, Sum, units

IMAGES = {"micro": (1, 8, 8), "cifar": (3, 32, 32), "imagenet": (3, 64, 64)}
PAPERS = (180 * 7**8) ** 2  # DARTS: 8 nodes with 1, 3, 6 and 10 pairs of edges in each type, 7 operations on each edge


def test_every_operation_stays_in_the_space(space: SearchSpace, rng: np.random.Generator) -> None:
    a, b = space.random(rng), space.random(rng)
    child = space.crossover(a, b, rng)
    for arch in (a, b, child, space.mutate(a, rng, 0.5)):
        assert space.contains(arch)
        assert space.architecture(space.indices(arch)) == arch
        assert all(c in gene.candidates for c, gene in zip(arch.choices, space.genes, strict=True))
    assert all(c in pair for c, *pair in zip(child.choices, a.choices, b.choices, strict=True))
    assert space.mutate(a, rng, 0.0) == a
    assert len({space.mutate(a, rng, 1.0) for _ in range(5)}) > 1


def test_what_is_not_a_point_is_refused(space: SearchSpace, rng: np.random.Generator) -> None:
    arch = space.random(rng)
    for other in (
        Architecture(f"{arch.space}0", arch.choices),
        Architecture(arch.space, arch.choices[1:]),
        Architecture(arch.space, (*arch.choices, arch.choices[0])),
        Architecture(arch.space, ("k9e9", *arch.choices[1:])),
    ):
        assert not space.contains(other)
        with pytest.raises(InputError, match="is not a point of"):
            space.workloads(other)


def test_random_is_uniform_over_the_genes(micro: SearchSpace, rng: np.random.Generator) -> None:
    """400 architectures: of the smaller half of each gene's candidates, 200 +- 5 standard deviations of 10."""
    drawn = np.array([micro.indices(micro.random(rng)) for _ in range(400)])
    for gene, column in zip(micro.genes, drawn.T, strict=True):
        half = len(gene.candidates) // 2
        expected = 400 * half / len(gene.candidates)
        assert abs((column < half).sum() - expected) <= 50


def test_crossover_and_mutation_rates(micro: SearchSpace, rng: np.random.Generator) -> None:
    """Shares over 200 children; 5 standard deviations of the mean of at least 1200 draws are below 0.08."""
    a, b = (micro.architecture([k] * len(micro.genes)) for k in (0, 1))
    children = np.array([micro.indices(micro.crossover(a, b, rng)) for _ in range(200)])
    assert abs(children.mean() - 0.5) < 0.08
    mutants = np.array([micro.indices(micro.mutate(a, rng, 0.5)) for _ in range(200)])
    redrawn_to_another = np.mean([1 - 1 / len(gene.candidates) for gene in micro.genes])
    assert abs((mutants != 0).mean() - 0.5 * redrawn_to_another) < 0.08


def test_every_gene_is_a_choice(space: SearchSpace) -> None:
    assert space.size == math.prod(len(gene.candidates) for gene in space.genes) >= 2 ** len(space.genes)
    assert isinstance(space.size, int)
    for parts in (space.genes, space.decisions):
        assert len({part.id for part in parts}) == len(parts)
        assert all(len(set(part.candidates)) == len(part.candidates) > 1 for part in parts)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("mobilenet:imagenet:bits=32,identity=no", 6**20),  # DI-NAS: six candidates in each of 20 layers
        ("mobilenet:imagenet:identity=no", 6**20),
        ("shufflenet:imagenet:bits=32", 4**20),  # SPOS: four in each of 20 layers
        ("shufflenet:cifar", 4**20),
        ("cells:imagenet:bits=32", PAPERS),
        ("cells:cifar", PAPERS),
        ("cells:micro:layers=20", PAPERS),  # searched once for all cells of a type
    ],
)
def test_sizes_of_the_papers(text: str, size: int) -> None:
    assert make_space(text, (3, 64, 64) if "imagenet" in text else (3, 32, 32), 10).size == size
    assert PAPERS == 1_076_746_950_455_072_400


def test_sizes_with_depth_and_bits() -> None:
    """Identity where shapes permit: 15 blocks that follow another of their stage, one at the wider stage of stride 1.

    In 1 bit that stage does not widen. Two bit widths double the candidates, not the identity, nor pools and skips.
    """
    shape, classes = (3, 64, 64), 10
    assert make_space("mobilenet:bits=32", shape, classes).size == 6**5 * 7**15
    assert make_space("mobilenet:imagenet", shape, classes).size == 6**4 * 7**16
    assert make_space("mobilenet:imagenet:bits=1+8", shape, classes).size == 12**4 * 13**16
    assert make_space("shufflenet:imagenet:bits=1+8+32", shape, classes).size == 12**20
    assert make_space("cells:imagenet:bits=1+8", shape, classes).size == (180 * 11**8) ** 2


def test_decisions_are_what_the_papers_relax() -> None:
    for text, rows, candidates in (("mobilenet:identity=no", 20, 6), ("shufflenet", 20, 4), ("cells", 28, 8)):
        decisions = make_space(text, (3, 32, 32), 10).decisions
        assert [len(d.candidates) for d in decisions] == [candidates] * rows
    cells = make_space("cells:bits=32", (3, 32, 32), 10)
    darts = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")  # fmt: skip  # noqa: E501
    assert all(d.candidates == darts for d in cells.decisions)
    assert [d.group for d in cells.decisions] == ["normal"] * 14 + ["reduction"] * 14


def test_texts_and_files_round_trip(space: SearchSpace, rng: np.random.Generator) -> None:
    arch = space.random(rng)
    assert Architecture.from_yaml(arch.to_yaml()) == arch
    assert space_of(arch.space) == space
    assert space_of(space.id).id == space.id


@given(st.sampled_from(sorted(SPACES)), st.sampled_from(sorted(IMAGES)), st.data())
@settings(deadline=None)
def test_any_combination_of_options_is_a_space(name: str, image: str, data: st.DataObject) -> None:
    """Values of all options at once; numbers where an option takes numbers. What does not fit says so in one line."""
    numbers = {"layers": st.integers(1, 9), "channels": st.integers(1, 200)}
    chosen = {
        option: data.draw(st.sampled_from(values) if values else numbers[option], label=option)
        for option, values in SPACES[name].OPTIONS.items()
        if data.draw(st.booleans(), label=f"{option} given")
    }
    text = f"{name}:{image}:" + ",".join(f"{option}={value}" for option, value in chosen.items())
    try:
        space = make_space(text.rstrip(":"), IMAGES[image], 2)
    except InputError as error:
        assert re.fullmatch(r"(layers|channels)=(\d+) of space .*", str(error))
        assert any(f"{option}={value} " in str(error) for option, value in chosen.items())
    else:
        assert space_of(space.id) == space
        workloads = space.workloads(space.random(np.random.default_rng(0)))
        assert workloads[-1].out_channels == 2
        assert min(min(w.in_channels, w.out_channels) for w in workloads) > 0


def test_grouped_convolutions_take_32_channels_or_all() -> None:
    for channels, groups in ((32, 1), (96, 3), (100, 1)):
        space = make_space(f"cells:ops=separable,depthwise=grouped,channels={channels}", (3, 32, 32), 10)
        assert {w.groups for w in units(space.template) if w.kernel > 1 and w.in_channels == channels} == {1, groups}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "exactly the keys"),
        ("{format: 2, space: s, choices: []}", "format 2"),
        ("{format: 1, space: s, choices: [], more: 1}", "exactly the keys"),
        ("{format: 1, space: 3, choices: []}", "space must be"),
        ("{format: 1, space: s, choices: 3}", "choices"),
    ],
)
def test_bad_architecture_files_say_why(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Architecture.from_yaml(text, "a.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space_id", "says"),
    [
        ("tiny", "not a space id"),
        ("tiny:1x8x8:10", "not a space id"),  # without its instance
        ("tiny:micro:1x8:10", "not a space id"),
        ("tiny:micro:1x8x8:x", "not a space id"),
        ("tyni:micro:1x8x8:10", "did you mean 'tiny'"),
        ("tiny:mikro:1x8x8:10", "did you mean 'micro'"),
        ("tiny:micro:1x9x9:10", "change the image in the space id 'tiny:micro:1x9x9:10'"),
        ("tiny:micro:1x4x4:10", "at least 8 pixels"),
        ("tiny:micro:1x8x8:10:ends=16", "unknown ends"),
        ("tiny:micro:2x8x8:3", "1 or 3 channels"),
        ("tiny:micro:1x8x8:1", "at least 2 classes"),
        ("tiny:micro:1x8x8:10:bits=1", "unknown option"),
        ("cells:micro:1x8x8:10:bits=2", "unknown bits"),
        ("cells:micro:1x8x8:10:bit=1", "did you mean 'bits'"),
        ("cells:micro:1x8x8:10:bits", "NAME"),
        ("cells:micro:1x8x8:10:bits=1:layers=2", "NAME"),
        ("cells:micro:1x8x8:10:layers=1", "at least 2"),
        ("cells:micro:1x8x8:10:layers=0", "1 to 4096"),
        ("cells:micro:1x8x8:10:layers=٣", "1 to 4096"),
        ("cells:micro:1x8x8:10:channels=6", "multiple of 4"),
        ("bireal18:micro:3x32x32:10", "unknown instance"),
    ],
)
def test_bad_space_ids_say_why(space_id: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as error:
        space_of(space_id)
    assert "\n" not in str(error.value)


def test_the_image_chooses_the_instance() -> None:
    for name in SPACES:
        for side, instance in ((8, "micro"), (16, "micro"), (32, "cifar"), (64, "cifar"), (224, "imagenet")):
            assert make_space(name, (3, side, side), 10) == make_space(f"{name}:{instance}", (3, side, side), 10)


@settings(deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.integers(1, 80), st.integers(1, 80))
def test_sizes_are_taken_where_every_reduction_halves(name: str, height: int, width: int) -> None:
    try:
        space = make_space(name, (1, height, width), 3)
    except InputError as error:
        assert "--image-size" in str(error)
        stride = int(re.search(r"divisible by (\d+)", str(error))[1])  # type: ignore[index]
        assert height % stride or width % stride or min(height, width) < max(8, 2 * stride)
    else:
        assert all(w.height % w.stride == w.width % w.stride == 0 for w in units(space.template))
        assert min(w.height for w in units(space.template)) == height // SPACES[name].STRIDES[space.instance]


def test_micro_instances_are_small(space: SearchSpace) -> None:
    """At most two halvings, and at most 150,000 parameters however the architecture is chosen.

    Only `depthwise=grouped` may have more: a group's kernel has 32 times the values of a depthwise one.
    """
    if space.instance != "micro":
        return
    head = space.template[-1]
    assert isinstance(head, Step)
    assert head.unit.height * 4 >= space.shape[1] and head.unit.width * 4 >= space.shape[2]
    if ("depthwise", "grouped") in space.options:
        return
    params = [
        np.array([sum(map(cost.params, space.candidate_workloads(d, k))) for k in range(len(decision.candidates))])
        for d, decision in enumerate(space.decisions)
    ]
    most = [max(sum(params[d][k] for d, k in taken) for taken in gene.settings) for gene in space.genes]
    assert sum(map(cost.params, space.fixed_workloads())) + sum(most) <= 150_000


def test_one_bit_channels_fill_words(space: SearchSpace) -> None:
    """Multiples of 32 in and out of every 1-bit unit; micro cells have 16, which DARTS's widths are a multiple of."""
    grain = 16 if space.name == "cells" and space.instance == "micro" else 32
    for w in units(space.template):
        if w.kind == "binary_conv":
            assert w.in_channels % grain == w.out_channels % grain == 0
            assert w.in_channels // w.groups >= grain  # no 1-bit depthwise convolutions


def test_the_bits_asked_for_are_the_bits_there_are(space: SearchSpace) -> None:
    """The first and last layers are float, or have the bits of `ends`; what is between them has those of `bits`.

    Without 1 bit nothing is binary, and 32 alone leaves nothing rounded.
    """
    widths = {int(b) for b in dict(space.options).get("bits", "1").split("+")}
    ends = int(dict(space.options).get("ends", "32"))
    steps = [item for item in space.template if isinstance(item, Step)]
    stem = [step.unit for step in steps if step.name.startswith("stem") and step.unit.kind == "conv"]
    inner = Counter(w for w in units(space.template) if w.kind in ("conv", "binary_conv")) - Counter(stem)
    found = {w.bits for w in inner}
    depthwise = dict(space.options).get("depthwise", "float")
    assert widths | {32} <= found | {32} <= widths | {32} | ({8} if depthwise == "int8" else set())
    assert steps[0].inputs == ("image",) and steps[0].unit == (
        stem[0] if ends == 32 else Workload("quantize", 8, *space.shape[:1], *space.shape)
    )
    assert {w.bits for w in stem} == {steps[-1].unit.bits} == {ends} and steps[-1].unit.kind == "head"
    assert (1 in widths) == any(w.kind == "binary_conv" for w in units(space.template))


def test_eight_bit_convolutions_read_rounded_values(space: SearchSpace, rng: np.random.Generator) -> None:
    for _ in range(5):
        rounded = set()
        for step in space.steps(space.random(rng)):
            if step.unit.bits == 8:
                if step.unit.kind == "conv":
                    assert set(step.inputs) <= rounded, step.name
                rounded.add(step.name)
            elif step.unit.kind in ("max_pool", "relu", "even_channels", "odd_channels"):  # keep values as they are
                rounded |= {step.name} if set(step.inputs) <= rounded else set()


def test_every_one_bit_convolution_has_a_shortcut(space: SearchSpace, rng: np.random.Generator) -> None:
    for step in space.steps(space.random(rng)):
        if step.unit.kind == "binary_conv":
            assert "residual" in step.unit.epilogue and len(step.inputs) == 2


def test_a_network_reads_only_what_is_there_and_uses_all_of_it(space: SearchSpace, rng: np.random.Generator) -> None:
    """Names are unique, inputs come before their readers, shapes agree, and nothing but the last value is unread."""
    for _ in range(5):
        steps = space.steps(space.random(rng))
        made = {"image": space.shape}
        for step in steps:
            w = step.unit
            assert step.name not in made
            result = (w.out_channels, w.out_height, w.out_width)
            shapes = [made[name] for name in step.inputs]
            if "residual" in w.epilogue:
                assert shapes.pop() == result
            assert w.in_channels == sum(channels for channels, *_ in shapes)
            assert all(size == [w.height, w.width] for _, *size in shapes)
            assert len(shapes) == {"add": 2, "concat": len(shapes)}.get(w.kind, 1)
            made[step.name] = result
        assert {name for step in steps for name in step.inputs} == set(made) - {steps[-1].name}


def test_all_workloads_are_those_of_all_architectures(space: SearchSpace, rng: np.random.Generator) -> None:
    """Every row of the list can be needed, and no architecture needs another."""
    rows = set(space.all_workloads())
    assert len(rows) == len(space.all_workloads())
    for _ in range(10):
        assert rows.issuperset(space.workloads(space.random(rng)))
    needed = set(space.fixed_workloads())
    for d, decision in enumerate(space.decisions):
        for k in range(len(decision.candidates)):
            needed.update(space.candidate_workloads(d, k))
    assert needed == rows


def test_an_architecture_is_its_fixed_part_and_its_candidates(space: SearchSpace, rng: np.random.Generator) -> None:
    for _ in range(10):
        arch = space.random(rng)
        gates = space.gates(space.indices(arch))
        parts = [*space.fixed_workloads(), *(w for d, k in enumerate(gates) for w in space.candidate_workloads(d, k))]
        assert sorted(parts) == sorted(space.workloads(arch))


def test_candidates_of_a_choice_make_one_shape_and_are_different(space: SearchSpace) -> None:
    for item in space.template:
        if isinstance(item, Choice):
            kinds = [block and tuple(step.unit for step in block) for block in item.blocks]
            assert len(set(kinds)) == len(kinds), item.name


@pytest.mark.parametrize("profile", ["rtx3080", "rpi4b"])
def test_there_is_something_to_save(plain: SearchSpace, profile: str) -> None:
    """Where an hour of search can change the latency by 1.5 or more; `tiny` on digits, where depth is free, by 4."""
    model = latency_model(plain, LatencyTable(load_profile(profile)))
    slowest = plain.architecture([int(ms.argmax()) for ms in model.candidate_ms])
    factor = 4 if profile == "rtx3080" and plain.id == "tiny:micro:1x8x8:10" else 1.5
    assert model.ms(slowest) >= factor * model.ms(model.fastest())


def test_references_are_spaces_of_one_or_points() -> None:
    for name in references.REFERENCES:
        arch = reference(name)
        space = space_of(arch.space)
        assert space.contains(arch)
        assert Architecture.from_yaml(arch.to_yaml()) == arch
        assert space.size == 1 if name in references.NETWORKS else space.size > 1
    with pytest.raises(InputError, match="did you mean 'bireal18'"):
        reference("bireal81")


def test_candidates_are_what_they_are_called(space: SearchSpace) -> None:
    """Kernel, expansion, dilation, number of convolutions and bits, read off the name of the candidate."""
    options = dict(space.options)
    for item in space.template:
        for name, block in zip(*candidates_of(space, item), strict=True):
            assert (block is None) == (name == "none")
            if name in ("none", "identity", "skip_connect", "max_pool_3x3", "avg_pool_3x3"):
                continue
            own, _, width = re.fullmatch(r"(.+?)(_(\d+)bit)?", name).groups()  # type: ignore[union-attr]
            bits = int(width or options.get("bits", 1))
            found = [step.unit for step in block if step.unit.kind in ("conv", "binary_conv")]
            spatial = [w.kernel for w in found if w.kernel > 1]
            depthwise = {"int8": {8}, "grouped": {1}}.get(options.get("depthwise", ""), {32})
            assert bits in {w.bits for w in found} <= {bits} | (depthwise if bits == 1 else set()), name

            if match := re.fullmatch(r"k(\d)e(\d)", own):
                kernel, expansion = map(int, match.groups())
                assert (spatial or [1]) == [kernel], name
                if not space.decisions[item.decision].id.startswith("reduction"):
                    assert max(w.in_channels for w in found) == expansion * block[0].unit.in_channels, name
            elif match := re.fullmatch(r"(?:bin_)?(sep_|dil_|)conv_(\d)x\2", own):
                assert spatial == [int(match[2])] * (2 if match[1] == "sep_" else 1), name
                assert {w.dilation for w in found if w.kernel > 1} == {2 if match[1] == "dil_" else 1}, name
                dense = bits == 1 and "ops" not in options
                assert len(found) == len(spatial) * (1 if dense else 2), name
            elif match := re.fullmatch(r"shuffle(\d)", own):
                assert set(spatial) == {int(match[1])}, name
            else:
                assert own == "xception" and set(spatial) == {3} and len(spatial) >= 3


def candidates_of(space: SearchSpace, item: Step | Choice | Sum) -> tuple[tuple, tuple]:
    """Names and blocks of a choice; none of anything else."""
    return (space.decisions[item.decision].candidates, item.blocks) if isinstance(item, Choice) else ((), ())
