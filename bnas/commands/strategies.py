"""`bnas strategies`: every search method with the paper it is from."""

from __future__ import annotations

from ..console import output, result
from . import settings


def strategies(as_json: bool = settings.JSON) -> None:
    """The search methods, what each does and where it comes from.

    Example: bnas strategies
    """
    from bnas.search.strategies import STRATEGIES

    with result(as_json) as emit:
        methods = [
            {
                "name": name,
                "summary": " ".join((module.__doc__ or "").split("\n\n")[0].split()),
                "source": module.SOURCE,
            }
            for name, module in STRATEGIES.items()
        ]
        emit({"strategies": methods}, lambda: _show(methods))


def _show(methods: list[dict]) -> None:
    from rich.table import Table

    table = Table("strategy", "what it does", "source")
    for method in methods:
        table.add_row(method["name"], method["summary"], method["source"])
    output.print(table)
