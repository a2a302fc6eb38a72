"""Describing networks: what choices and sums become when they are resolved, and what cannot be described."""

from functools import partial

import pytest

from bnas.profiles.workload import Workload
from bnas.search.spaces.blocks import bireal, identity
from bnas.search.spaces.wiring import IMAGE, Choice, Step, Value, Wiring, resolve, units

X = Value(IMAGE, 32, 8, 8)


def conv(w: Wiring, x: Value, kernel: int) -> Value:
    return w.conv("conv", x, x.channels, kernel)


def none(w: Wiring, x: Value) -> None:
    return None


CANDIDATES = {"none": none, "k3": partial(conv, kernel=3), "k5": partial(conv, kernel=5), "identity": identity}


def two_choices() -> Wiring:
    """A sum of a choice and the image, a second choice behind it, and a third term from there."""
    w = Wiring()
    first = w.choice("first", 0, X, CANDIDATES)
    total = w.sum("total", first, X)
    second = w.choice("second", 1, total, CANDIDATES)
    w.step("last", "relu", w.sum("end", first, total, second))
    return w


def wires(gates: tuple[int, int]) -> list[tuple[str, tuple[str, ...]]]:
    return [(step.name, step.inputs) for step in resolve(two_choices().template, gates)]


def test_a_choice_becomes_its_block() -> None:
    assert wires((1, 2)) == [
        ("first.k3.conv", (IMAGE,)),
        ("total.add0", ("first.k3.conv", IMAGE)),
        ("second.k5.conv", ("total.add0",)),
        ("end.add0", ("first.k3.conv", "total.add0")),
        ("end.add1", ("end.add0", "second.k5.conv")),
        ("last", ("end.add1",)),
    ]


def test_identity_stands_for_what_it_reads() -> None:
    assert wires((3, 3)) == [
        ("total.add0", (IMAGE, IMAGE)),
        ("end.add0", (IMAGE, "total.add0")),
        ("end.add1", ("end.add0", "total.add0")),
        ("last", ("end.add1",)),
    ]


def test_none_is_no_term_and_a_sum_of_one_term_is_that_term() -> None:
    assert wires((0, 0)) == [("last", (IMAGE,))]
    assert wires((0, 1)) == [
        ("second.k3.conv", (IMAGE,)),
        ("end.add0", (IMAGE, "second.k3.conv")),
        ("last", ("end.add0",)),
    ]


def test_a_sum_of_nothing_is_named() -> None:
    w = Wiring()
    w.step("last", "relu", w.sum("total", w.choice("only", 0, X, CANDIDATES)))
    with pytest.raises(ValueError, match="total has no input"):
        resolve(w.template, (0,))
    assert len(resolve(w.template, (1,))) == 2


def test_candidates_must_agree_in_shape() -> None:
    w = Wiring()
    halving = {
        "half": partial(bireal, out=32, kernel=3, stride=2),
        "whole": partial(bireal, out=32, kernel=3, stride=1),
    }
    with pytest.raises(ValueError, match="mixed: candidates differ in shape"):
        w.choice("mixed", 0, X, halving)


@pytest.mark.parametrize(
    ("channels", "out", "stride", "kinds"),
    [
        (32, 32, 1, []),
        (32, 96, 1, ["duplicate"]),
        (96, 32, 1, ["average"]),
        (32, 32, 2, ["downsample"]),
        (32, 64, 2, ["downsample"]),
        (64, 32, 2, ["downsample", "average"]),
    ],
)
def test_a_shortcut_fits_without_weights(channels: int, out: int, stride: int, kinds: list[str]) -> None:
    w = Wiring()
    y = w.shortcut("s", Value("x", channels, 8, 6), out, stride)
    assert (y.channels, y.height, y.width) == (out, 8 // stride, 6 // stride)
    assert [unit.kind for unit in units(w.template)] == kinds


def test_there_is_no_shortcut_between_channels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="s: no shortcut from 48 to 32 channels"):
        Wiring().shortcut("s", Value("x", 48, 8, 8), 32)


def test_parts_describe_one_network() -> None:
    w = Wiring()
    x = w.at("cells.0").at("input").conv("point", X, 16, 1)
    w.step("head", "head", x, out=10)
    names = [item.name for item in w.template if isinstance(item, Step)]
    assert names == ["cells.0.input.point", "head"]


def test_eight_bits_are_rounded_once() -> None:
    """In front of the first convolution, not between two, nor behind a pool; behind a mean or a sum again."""
    w = Wiring()
    x = w.conv("a", X, 32, 3, bits=8)
    x = w.conv("b", w.step("pool", "max_pool", x, kernel=3), 32, 1, bits=8)
    x = w.conv("c", w.step("mean", "avg_pool", x, kernel=3), 32, 1, bits=8)
    w.conv("d", w.step("sum", "add", x, x, out=32), 32, 1, bits=8)
    kinds = [unit.kind for unit in units(w.template)]
    assert kinds == ["quantize", "conv", "max_pool", "conv", "avg_pool", "quantize", "conv", "add", "quantize", "conv"]


def test_units_are_those_of_all_candidates() -> None:
    template = two_choices().template
    assert sum(isinstance(item, Choice) for item in template) == 2
    add = Workload("add", 32, 64, 32, 8, 8)
    convs = [Workload("conv", 32, 32, 32, 8, 8, kernel) for kernel in (3, 5)]
    assert list(units(template)) == [*convs, add, *convs, add, Workload("relu", 32, 32, 32, 8, 8)]
