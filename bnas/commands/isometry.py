"""`bnas isometry`: how evenly the candidates of a space pass signals on, by initialiser, in float and in 1 bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError, unknown

from ..console import Progress, output, progress, result, say
from . import settings
from .spaces import IMAGE, IMAGES, parse_image, sized_by_image

if TYPE_CHECKING:
    from bnas.search.isometry import Isometry, Spectrum

LOOKS = (("#888888", "solid"), ("#1f77b4", "solid"), ("#2ca02c", "dash"), ("#d62728", "dot"), ("#9467bd", "dashdot"))
QUANTILES = 101


def isometry(
    space: str = typer.Option("tiny", "--space", help="Search space, NAME[:INSTANCE][:OPTION=VALUE,...]."),
    image: str | None = IMAGE,
    decision: str | None = typer.Option(None, "--decision", help="Candidates of this decision only (default: all)."),
    init: list[str] | None = typer.Option(None, "--init", help="Initialiser; may be repeated (default: every one)."),
    surrogate: str = typer.Option("polynomial", "--surrogate", help="Derivative that stands in for that of the sign."),
    seed: int = typer.Option(0, "--seed", help="Of images and weights."),
    html: Path | None = typer.Option(None, "--html", help="Page to write with the distributions as pictures."),
    as_json: bool = settings.JSON,
) -> None:
    """Mean and spread of the squared singular values of each candidate's input-output Jacobian (docs/isometry.md).

    Isometry is a mean of 1 and a spread of 0. Example: bnas isometry --space mobilenet:bits=32 --html isometry.html
    """
    with result(as_json) as emit, progress() as report:
        if html is not None and not html.parent.is_dir():
            raise InputError(f"--html {html}: there is no folder {html.parent}; make it first")
        document, measured = do_isometry(
            space=space, image=image, decision=decision, initialisers=init, surrogate=surrogate, seed=seed,
            report=report,
        )  # fmt: skip
        if html is not None:
            write_page(document, measured, html)
            document["html"] = str(html)
        emit(document, lambda: _show(document))


def do_isometry(
    *,
    space: str = "tiny",
    image: str | None = None,
    decision: str | None = None,
    initialisers: list[str] | None = None,
    surrogate: str = "polynomial",
    seed: int = 0,
    report: Progress,
) -> tuple[dict, list[Isometry]]:
    """The document, and what its rows were made of. Raises InputError for names that there are not."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} must be from 0 to {2**32 - 1}")
    from bnas.search.binary.layers import Style
    from bnas.search.initialisers import INITIALISERS
    from bnas.search.isometry import candidates, isometries
    from bnas.search.spaces import make_space

    for name in initialisers or ():
        if name not in INITIALISERS:
            raise unknown("initialiser", name, INITIALISERS)
    style = Style(surrogate=surrogate)
    instance = next((name for name in IMAGES if name in space.split(":")[1:]), "micro")
    usual_shape, classes = IMAGES[instance]
    with sized_by_image():
        the_space = make_space(space, usual_shape if image is None else parse_image(image), classes)
    known = [d.id for d in the_space.decisions]
    if not known:
        raise InputError(f"space {space!r} has no decisions, so no candidates; choose another --space")
    if decision is not None and decision not in known:
        raise unknown(f"decision of space {space!r}", decision, known)
    names: tuple[str | None, ...] = tuple(dict.fromkeys(initialisers or INITIALISERS))
    found = candidates(the_space, decision)
    measured: list[Isometry] = []
    for done, candidate in enumerate(found):
        report("isometry", done, len(found))
        ones = [
            one
            for name in (names if candidate.has_weights else (None,))
            for one in isometries(candidate, name, seed, style)
        ]
        measured += sorted(ones, key=lambda one: one.bits)
    report("isometry", len(found), len(found))
    document = {
        "space": the_space.id,
        "seed": seed,
        "surrogate": surrogate,
        "rows": [_row(one) for one in measured],
    }
    return document, measured


def _row(one: Isometry) -> dict:
    candidate = one.candidate
    return {
        "decision": candidate.decision,
        "candidate": candidate.name,
        "image": "x".join(map(str, candidate.shape)),
        "bits": one.bits,
        "initialiser": one.initialiser,
        **_numbers(one.block),
        "linear": None if one.linear is None else _numbers(one.linear),
    }


def _numbers(spectrum: Spectrum) -> dict:
    values = spectrum.values
    return {
        "outputs": spectrum.outputs,
        "inputs": spectrum.inputs,
        "exact": spectrum.exact,
        "mean": spectrum.mean,
        "mean_error": spectrum.mean_error,
        "spread": spectrum.spread,
        "spread_error": spectrum.spread_error,
        "min": None if values is None else float(values[0]),
        "max": None if values is None else float(values[-1]),
    }


def write_page(document: dict, measured: list[Isometry], path: Path) -> None:
    """One self-contained HTML page: a row of pictures for each candidate, a line for each initialiser.

    A line is the share of squared singular values up to x; diamonds are means, their bars the root of the spread.
    """
    import html

    import numpy as np
    from plotly.subplots import make_subplots

    from bnas.profiles import atomic

    candidates = list(dict.fromkeys(one.candidate for one in measured))
    names = list(dict.fromkeys(one.initialiser for one in measured))
    columns = [(part, bits) for part in ("block", "weights") for bits in sorted({one.bits for one in measured})]
    titles = [f"{part}, {'float' if bits == 32 else f'{bits} bit'}" for part, bits in columns]
    figure = make_subplots(
        rows=len(candidates), cols=len(columns), column_titles=titles, vertical_spacing=0.3 / len(candidates),
        row_titles=[f"{c.name}<br>{c.decision}<br>{'x'.join(map(str, c.shape))}" for c in candidates],
    )  # fmt: skip
    shares = np.linspace(0, 1, QUANTILES)
    legend = set()
    for one in measured:
        for part, spectrum in (("block", one.block), ("weights", one.linear)):
            if spectrum is None:
                continue
            label = one.initialiser or "no weights"
            place = {"row": 1 + candidates.index(one.candidate), "col": 1 + columns.index((part, one.bits))}
            number = names.index(one.initialiser)
            colour, dash = LOOKS[number % len(LOOKS)]
            root = max(spectrum.spread, 0) ** 0.5
            group = {"name": label, "legendgroup": label, "showlegend": label not in legend}
            legend.add(label)
            bar = {"array": [root], "arrayminus": [min(root, spectrum.mean)], "symmetric": False, "thickness": 1}
            figure.add_scatter(
                x=[spectrum.mean], y=[(number + 1) / (len(names) + 1)], error_x=bar, mode="markers",
                marker={"symbol": "diamond", "color": colour}, **group, **place,
            )  # fmt: skip
            if spectrum.values is not None:
                x = np.quantile(spectrum.values, shares)
                group["showlegend"] = False
                figure.add_scatter(x=x, y=shares, mode="lines", line={"color": colour, "dash": dash}, **group, **place)
    figure.update_yaxes(range=[-0.05, 1.05])
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(
        template="plotly_white", height=180 + 190 * len(candidates), margin={"t": 110, "r": 90},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top"},
    )  # fmt: skip
    about = f"{document['space']}, seed {document['seed']}. {_meaning(document)}"
    atomic.write_text(
        path,
        "<!doctype html><meta charset='utf-8'><title>bnas isometry</title>"
        "<style>body{font-family:sans-serif;margin:2rem}</style><h1>Squared singular values</h1>"
        f"<p>{html.escape(about)} Lines: the share of values up to x; diamonds: mean and root of the spread, alone "
        "where it is estimated.</p>" + figure.to_html(full_html=False, include_plotlyjs=True),
    )


def _meaning(document: dict) -> str:
    return (
        "Isometry is mean 1 and spread 0. In 1 bit the Jacobian is that of the surrogate gradient "
        f"({document['surrogate']}), which stands in for the derivative of the sign; "
        "32 bits in a 1-bit block: the same weights, nothing rounded."
    )


def _show(document: dict) -> None:
    from rich.table import Column, Table

    numbers = ("mean", "spread", "min", "max")
    for part in ("block", "weights alone"):
        folded = (Column(name, overflow="fold") for name in ("candidate", "bits", "initialiser"))
        table = Table(*folded, *numbers, title=f"{document['space']}: {part}")
        before = None
        for row in document["rows"]:
            if (spectrum := row if part == "block" else row["linear"]) is None:
                continue
            candidate = f"{row['decision']} {row['candidate']} {row['image']}"
            if before not in (None, candidate):
                table.add_section()
            shown = candidate if candidate != before else ""
            cells = (_text(spectrum, name) for name in numbers)
            table.add_row(shown, str(row["bits"]), row["initialiser"] or "", *cells)
            before = candidate
        output.print(table)
    say(_meaning(document))
    if not all(row["exact"] for row in document["rows"]):
        say("± is a 95% interval of what random vectors estimate; minimum and maximum are not known there")
    if "html" in document:
        say(f"picture: {document['html']}")


def _text(numbers: dict, name: str) -> str:
    value = numbers[name]
    if value is None:
        return ""
    error = numbers.get(f"{name}_error", 0.0)
    return f"{value:.3f} ±{error:.3f}" if error else f"{value:.3f}"
