"""`bnas report`: everything a run knows, on one screen and as one page with the picture of its search."""

from __future__ import annotations

from pathlib import Path

import typer

from .. import runs
from ..console import output, result, say
from . import settings

STAGES = {
    "search": "search.json",
    "train": "train.json",
    "onnx": "export-onnx.json",
    "tflite": "export-tflite.json",
    "bench": "bench.json",
}


def report(
    run: str | None = settings.RUN,
    html: Path | None = typer.Option(None, "--html", help="Page to write (default: RUN/report.html)."),
    as_json: bool = settings.JSON,
) -> None:
    """Sum up a run: configuration, what was found, accuracy, files, times; writes a page with the search as a picture.

    Example: bnas report
    """
    with result(as_json) as emit:
        found = runs.find(run)
        document = summary(found)
        if document.get("search"):
            page = html or found.path("report.html")
            write_page(document, page)
            document["html"] = str(page)
        emit(document, lambda: _show(document))


def summary(run: runs.Run) -> dict:
    """The results of every finished stage; raw samples are left in bench.json."""
    document: dict = {"run": str(run.folder), "config": run.config}
    for stage, name in STAGES.items():
        if (content := run.read(name)) is not None:
            document[stage] = content
    if "search" in document:
        document["search"]["seconds"] = (run.read("seconds.json") or {}).get("search", {})
    for row in document.get("bench", {}).get("results", []):
        row.pop("samples_ns", None)
    return document


def write_page(document: dict, path: Path) -> None:
    """One self-contained HTML page: every scored architecture by latency and accuracy, and the losses."""
    import html

    from plotly.subplots import make_subplots

    from bnas.profiles import atomic
    from bnas.profiles.table import format_ms

    from ..drawing import course

    search = document["search"]
    trials = search["trials"]
    best = (search["predicted_ms"], search["score"])
    figure = make_subplots(cols=2, rows=1, subplot_titles=("scored architectures", "mean loss per epoch"))
    figure.add_scatter(
        x=[t["latency_ms"] for t in trials], y=[t["score"] for t in trials], mode="markers", name="scored",
        text=["-".join(t["choices"]) for t in trials], row=1, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[best[0]], y=[best[1]], mode="markers", marker={"size": 14, "symbol": "star"}, name="taken", row=1, col=1
    )
    figure.add_vline(x=search["limit_ms"], line_dash="dash", annotation_text="limit", row=1, col=1)
    figure.add_scatter(y=search["supernet_losses"], name="supernet", row=1, col=2)
    if trained := document.get("train"):
        figure.add_scatter(y=trained["losses"], name="training", row=1, col=2)
    figure.update_xaxes(title_text=f"predicted latency, ms ({search['profile']})", row=1, col=1)
    figure.update_yaxes(title_text=search["score_name"], row=1, col=1)
    figure.update_xaxes(title_text="epoch", row=1, col=2)
    figure.update_layout(template="plotly_white", height=480)
    facts = [
        ("architecture", " ".join(search["architecture"]["choices"])),
        ("limit", f"{format_ms(search['limit_ms'])} ({search['limit_source']})"),
        ("predicted", f"{search['prediction']} on {search['profile']}"),
    ]
    if search["certificate"]:
        facts.append(("selection", search["certificate"]))
    if trained:
        facts.append(("test accuracy", f"{trained['test_accuracy']:.2%} of {trained['test_images']} images"))
    for row in document.get("bench", {}).get("results", []):
        label = f"{row['label']}, {row['threads']} thread{'s' * (row['threads'] > 1)}, {row['engine']}"
        facts.append((label, f"{format_ms(row['p50_ms'])} (p90 {format_ms(row['p90_ms'])})"))
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts)
    atomic.write_text(
        path,
        "<!doctype html><meta charset='utf-8'><title>bnas run</title><style>body{font-family:sans-serif;margin:2rem}"
        "th{text-align:left;padding-right:2rem}</style>"
        f"<h1>{html.escape(document['run'])}</h1><table>{rows}</table><p>{front_picture(search)}</p>"
        + figure.to_html(full_html=False, include_plotlyjs=True)
        + course.section(search),
    )


def front_picture(search: dict) -> str:
    """The scored architectures and the front, as an SVG element."""
    from ..drawing.front import draw_front

    return draw_front(
        [(t["latency_ms"], t["score"]) for t in search["trials"]],
        [(row["predicted_ms"], row["score"]) for row in search["front"]],
        (search["predicted_ms"], search["score"]),
        search["limit_ms"],
        search["score_name"],
        f"Front of {search['strategy']} on {search['profile']}",
    )


def _show(document: dict) -> None:
    from . import bench, export, train
    from . import search as search_command

    if "search" not in document:
        output.print(f"{document['run']}: the search has not finished; repeat the bnas search command to continue it")
        return
    search_command._show(document["search"])
    if trained := document.get("train"):
        train._show(trained)
    for format in ("onnx", "tflite"):
        if exported := document.get(format):
            export._show(exported)
    if measured := document.get("bench"):
        bench._show(measured)
    say(f"picture: {document['html']}")
