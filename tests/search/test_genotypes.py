"""Genotypes as DARTS prints them: what goes in comes out, in every bit width, and nothing else gets in."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles.errors import InputError
from bnas.search.spaces import SearchSpace, make_space
from bnas.search.spaces.cells import from_genotype, genotype

IMAGE = ((3, 32, 32), 10)
SPACES = {
    text: make_space(f"cells:micro{':' if text else ''}{text}", *IMAGE)
    for text in ("", "ops=separable", "bits=32", "bits=8", "bits=1+8", "bits=8+32")
}
# DCP-NAS's released network, in DARTS's notation: (operation, input) of two edges for each of nodes 2 to 5
DCP_NAS = """Genotype(
    normal=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('dil_conv_3x3', 2), ('skip_connect', 0),
            ('sep_conv_3x3', 3), ('avg_pool_3x3', 1), ('dil_conv_3x3', 4), ('avg_pool_3x3', 3)],
    normal_concat=range(2, 6),
    reduce=[('max_pool_3x3', 0), ('sep_conv_3x3', 1), ('dil_conv_3x3', 1), ('sep_conv_3x3', 0),
            ('max_pool_3x3', 1), ('dil_conv_5x5', 2), ('dil_conv_5x5', 2), ('sep_conv_5x5', 1)],
    reduce_concat=range(2, 6))"""
GATES = {  # (from, to) -> operation, read off the text above
    "normal": {
        (1, 2): "sep_conv_5x5", (0, 2): "max_pool_3x3", (2, 3): "dil_conv_3x3", (0, 3): "skip_connect",
        (3, 4): "sep_conv_3x3", (1, 4): "avg_pool_3x3", (4, 5): "dil_conv_3x3", (3, 5): "avg_pool_3x3",
    },
    "reduction": {
        (0, 2): "max_pool_3x3", (1, 2): "sep_conv_3x3", (1, 3): "dil_conv_3x3", (0, 3): "sep_conv_3x3",
        (1, 4): "max_pool_3x3", (2, 4): "dil_conv_5x5", (2, 5): "dil_conv_5x5", (1, 5): "sep_conv_5x5",
    },
}  # fmt: skip


@pytest.mark.parametrize("text", SPACES)
def test_what_is_printed_is_read_back(text: str, rng: np.random.Generator) -> None:
    space = SPACES[text]
    for _ in range(50):
        arch = space.random(rng)
        assert from_genotype(space, genotype(space, arch)) == arch
        assert from_genotype(space, f"FOUND = {genotype(space, arch)}\n") == arch


def gates(space: SearchSpace, text: str) -> dict[str, str]:
    """Decision id -> the operation taken, of the edges that have one."""
    arch = from_genotype(space, text)
    taken = zip(space.decisions, space.gates(space.indices(arch)), strict=True)
    return {d.id: d.candidates[k] for d, k in taken if d.candidates[k] != "none"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("bits=32", {}),
        ("bits=8", {}),
        ("", {"sep_conv": "bin_conv", "dil_conv": "bin_dil_conv"}),
        ("ops=separable", {"sep_conv": "bin_sep_conv", "dil_conv": "bin_dil_conv"}),
    ],
)
def test_dcp_nas_is_a_point_of_every_bit_width(text: str, names: dict[str, str]) -> None:
    def ours(operation: str) -> str:
        stem = operation[: -len("_3x3")]
        return operation.replace(stem, names.get(stem, stem))

    expected = {f"{type}.{i}_{j}": ours(op) for type, edges in GATES.items() for (i, j), op in edges.items()}
    assert gates(SPACES[text], DCP_NAS) == expected


def test_the_order_of_a_nodes_edges_means_nothing() -> None:
    swapped = DCP_NAS.replace("('sep_conv_5x5', 1), ('max_pool_3x3', 0)", "('max_pool_3x3', 0), ('sep_conv_5x5', 1)")
    assert swapped != DCP_NAS
    assert from_genotype(SPACES["bits=32"], swapped) == from_genotype(SPACES["bits=32"], DCP_NAS)


@pytest.mark.parametrize("concat", ["range(2, 6)", "range(2,6)", "[2, 3, 4, 5]", "(2, 3, 4, 5)"])
def test_all_spellings_of_the_concat_are_one(concat: str) -> None:
    text = DCP_NAS.replace("range(2, 6)", concat)
    assert from_genotype(SPACES[""], text) == from_genotype(SPACES[""], DCP_NAS)


def edge(text: str) -> str:
    """DCP-NAS's with another first edge in the normal cell."""
    return DCP_NAS.replace("('sep_conv_5x5', 1)", text, 1)


SPOILT = {
    "nothing": ("", "not a genotype"),
    "another call": ("print('x')", "not a genotype"),
    "two calls": ("Genotype(normal=[], reduce=[]), Genotype(normal=[], reduce=[])", "not a genotype"),
    "no reduce": ("Genotype(normal=[('skip_connect', 0)])", "not a genotype"),
    "positional": ("Genotype([('skip_connect', 0)], [2, 3, 4, 5], [], [2, 3, 4, 5])", "not a genotype"),
    "not closed": (DCP_NAS[:-1], "not a genotype"),
    "syntax": (DCP_NAS.replace("normal=[", "normal=[["), "not a genotype"),
    "code": (edge("(__import__('os').system('exit 3'), 1)"), "not a genotype"),
    "code behind": (f"{DCP_NAS} or __import__('os')", "not a genotype"),
    "code as concat": (DCP_NAS.replace("range(2, 6)", "exit(3)"), "normal_concat=exit(3) is not supported"),
    "deep": (edge("(" * 5000 + ")" * 5000), "not a genotype"),
    "a number": (edge("7"), "not a genotype"),
    "a fraction": (edge("('sep_conv_5x5', 1.5)"), "not a genotype"),
    "infinity": (edge("('sep_conv_5x5', 1e999)"), "not a genotype"),
    "no name": (edge("(3, 1)"), "not a genotype"),
    "wrong concat": (
        DCP_NAS.replace("normal_concat=range(2, 6)", "normal_concat=[3, 4, 5]"),
        "normal_concat=[3, 4, 5]",
    ),
    "too few": (edge("('skip_connect', 1)").replace("('avg_pool_3x3', 3)", ""), "normal has 7 edges, expected 8"),
    "too many": (edge("('skip_connect', 1), ('skip_connect', 1)"), "normal has 9 edges"),
    "unknown operation": (edge("('conv_9x9', 1)"), "normal node 2 cannot be 'max_pool_3x3@0+conv_9x9@1'"),
    "none": (edge("('none', 1)"), "normal node 2 cannot be 'max_pool_3x3@0+none@1'"),
    "a name of two lines": (edge("('conv\\n', 1)"), r"normal node 2 cannot be 'max_pool_3x3@0+conv\n@1'"),
    "a concat of two lines": (DCP_NAS.replace("range(2, 6)", "f'''a\n{b}'''", 1), "is not supported"),
    "twice the same input": (edge("('sep_conv_5x5', 0)"), "normal node 2 cannot be"),
    "an input that comes later": (edge("('sep_conv_5x5', 2)"), "normal node 2 cannot be"),
    "a negative input": (edge("('sep_conv_5x5', -1)"), "normal node 2 cannot be"),
    "a name that says more": (edge("('max_pool_3x3@0+skip_connect', 1)"), "normal node 2 cannot be"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_anything_else_is_refused_in_one_line(spoilt: str) -> None:
    text, says = SPOILT[spoilt]
    with pytest.raises(InputError, match=re.escape(says)) as error:
        from_genotype(SPACES["bits=32"], text)
    assert "\n" not in str(error.value)


@settings(deadline=None)
@given(st.text(), st.integers(0, len(DCP_NAS)), st.integers(0, 20))
def test_no_text_does_more_than_be_refused(inserted: str, start: int, removed: int) -> None:
    text = DCP_NAS[:start] + inserted + DCP_NAS[start + removed :]
    try:
        arch = from_genotype(SPACES["bits=32"], text)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert SPACES["bits=32"].contains(arch)


def test_operations_of_one_width_do_not_name_those_of_several() -> None:
    with pytest.raises(InputError, match="cannot be"):
        from_genotype(SPACES["bits=1+8"], DCP_NAS)


def test_only_a_point_of_the_space_is_printed(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="is not a point of"):
        genotype(SPACES["bits=8"], SPACES["bits=32"].random(rng))
