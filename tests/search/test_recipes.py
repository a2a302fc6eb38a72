"""Budgets: their names, and that the one of a publication is the method's own."""

import pytest

from bnas.profiles.errors import InputError
from bnas.search.strategies import STRATEGIES
from bnas.search.training.recipes import BUDGETS, PAPER, Budget, budget


def test_published_settings() -> None:
    """(epochs, batch) of the supernet, as read in the papers and their code."""
    published = {
        "spos": (120, 1024), "fairnas": (150, 256), "bn-nas": (10, 512), "darts": (50, 64), "pc-darts": (50, 256),
        "snas": (150, 64),
    }  # fmt: skip
    for name, expected in published.items():
        spent = budget("paper", name)
        recipe = spent.relaxed if "relaxed" in PAPER[name] else spent.supernet
        assert recipe and (recipe.epochs, recipe.batch_size) == expected, name
    assert budget("paper", "spos").evaluations == 20 * 50


@pytest.mark.parametrize("name", PAPER)
def test_only_paper_depends_on_the_method(name: str) -> None:
    assert name in STRATEGIES
    assert budget("smoke", name) == BUDGETS["smoke"] and budget("default", name) == BUDGETS["default"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_comes_back_from_its_dictionary(name: str, strategy: str) -> None:
    spent = budget(name, strategy)
    assert Budget.from_dict(spent.to_dict()) == spent


def test_an_unknown_budget_is_named() -> None:
    with pytest.raises(InputError, match="smoke"):
        budget("smok")
