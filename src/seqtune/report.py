"""A run's or a study's folder -> one HTML file that a person can read anywhere: no network, no torch, little script."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import polars
from markupsafe import Markup
from matplotlib import pyplot
from rapidfuzz.distance import Levenshtein

from seqtune import analysis, plugins
from seqtune.errors import RunError
from seqtune.evaluate import read_predictions
from seqtune.records import Prediction
from seqtune.tasks import Task

matplotlib.use("Agg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: smaller, and searchable
MAX_ERRORS = 300
MAX_PICTURES = 60
NUM_BINS = 8
MAX_LEGEND = 40
MAX_LINES = 200  # points of a grid that lines can show
SCORES = ("exact_match", "structure_accuracy", "edit_similarity", "bleu_char")
BLUE, GREY = "#2563a8", "#8a94a3"


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's, an evaluation's or a study's folder.

    Raises:
        RunError: the folder holds neither scores nor a study's results.
    """
    if (folder / "summary.csv").exists():
        page = _study_page(folder)
    elif (folder / "metrics.json").exists() and (folder / "predictions.jsonl").exists():
        page = _run_page(folder)
    else:
        raise RunError(f"{str(folder)!r} holds no metrics.json and predictions.jsonl, and no summary.csv of a study")
    out = folder / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def _render(name: str, **values: Any) -> str:
    loader = jinja2.PackageLoader("seqtune", "assets/report")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name).render(**values)


def _run_page(folder: Path) -> str:
    metrics = json.loads((folder / "metrics.json").read_text())
    predictions = read_predictions(folder / "predictions.jsonl")
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    plots = [("Training", _training_plot(lines))] if any("loss" in line for line in lines) else []
    answered = [p for p in predictions if p.hypotheses]
    if answered:
        plots += [("Can its confidence be trusted?", _reliability_plot(answered)), ("Answering less", _coverage_plot(answered))]
    scores = [(name, value) for name, value in metrics.items() if isinstance(value, dict) and "signature" in value]
    tables = [("By input length", *_length_table(metrics))] if len(metrics.get("by_input_length", [])) > 1 else []
    tables += [(f"By {name}", *_rows_table(name, rows)) for name, rows in metrics.get("strata", {}).items() if len(rows) > 1]
    if metrics.get("baselines"):
        rows = [{"label": name, **row} for name, row in metrics["baselines"].items()]
        tables.insert(0, ("Other tools on the same items", *_rows_table("tool", rows)))
    return _render(
        "run.html", title=folder.resolve().name, summary=_summary(metrics, folder), scores=scores, plots=plots, tables=tables,
        ceiling=metrics.get("gold_ceiling", {}), errors=_errors(predictions, folder), num_items=metrics["num_items"],
        num_wrong=sum(p.prediction != p.reference for p in predictions),
    )  # fmt: skip


def _summary(metrics: dict[str, Any], folder: Path) -> list[str]:
    exact = metrics["exact_match"]
    lines = [
        f"{100 * exact['value']:.1f}% of {metrics['num_items']:,} held-out answers are exactly right "
        f"(95% interval {100 * exact['low']:.1f}% to {100 * exact['high']:.1f}%)."
    ]
    if "structure_accuracy" in metrics:
        value = metrics["structure_accuracy"]
        lines.append(f"{100 * value['value']:.1f}% mean the right structure.")
    environment = folder / "environment.json"
    log = folder / "log.jsonl"
    if environment.exists() and log.exists():
        last = [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line][-1]
        lines.append(
            f"Trained for {last['seconds'] / 60:.1f} minutes, {last['step']:,} steps, {last['num_tokens']:,} tokens on "
            f"{json.loads(environment.read_text()).get('device', 'an unknown device')}."
        )
    return lines


def _rows_table(heading: str, rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, dict)))
    headings = [heading, "items", *(name.replace("_", " ") for name in names)]
    body = [[row["label"], f"{row['num_items']:,}", *(_interval(row[n]) if n in row else "-" for n in names)] for row in rows]
    return headings, body


def _length_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [{**row, "label": f"{row['min_characters']}-{row['max_characters']}"} for row in metrics["by_input_length"]]
    return _rows_table("characters", rows)


def _interval(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _confidence(prediction: Prediction) -> float:
    """Probability that the model gives its answer as a whole."""
    return math.exp(min(0.0, prediction.score))


def _errors(predictions: Sequence[Prediction], folder: Path) -> list[dict[str, Any]]:
    """The wrong answers, those that the model was surest of first."""
    wrong = sorted((p for p in predictions if p.prediction != p.reference), key=_confidence, reverse=True)[:MAX_ERRORS]
    task_file = folder / "task.yaml"
    pack = Task.load(task_file).pack if task_file.exists() else None
    picture: Callable[[str], str] | None = plugins.load(pack.picture) if pack and pack.picture else None
    rows = []
    for index, p in enumerate(wrong):
        reference = p.reference or ""
        ours, theirs, first = difference(p.prediction, reference)
        drawn = []
        if picture and index < MAX_PICTURES:
            texts = [
                p.details.get("read_back") or p.prediction,
                p.input if p.details.get("read_back") is not None else reference,
            ]
            drawn = [Markup(svg) for svg in map(picture, texts) if svg]  # noqa: S704 - drawn by the pack, not taken from data
        rows.append(
            {
                "id": p.id, "input": p.input, "prediction": ours, "reference": theirs, "first": first, "length": len(reference),
                "confidence": _confidence(p), "status": p.details.get("structure") or p.status, "pictures": drawn,
            }
        )  # fmt: skip
    return rows


def difference(prediction: str, reference: str) -> tuple[Markup, Markup, int]:
    """Both texts with what differs marked, and the first character at which they part.

    Example:
        >>> difference("abx", "aby")
        (Markup('ab<del>x</del>'), Markup('ab<ins>y</ins>'), 2)
    """
    ours, theirs, first = [], [], None
    for step in Levenshtein.opcodes(prediction, reference):
        mine, right = prediction[step.src_start : step.src_end], reference[step.dest_start : step.dest_end]
        if step.tag == "equal":
            ours.append(html.escape(mine))
            theirs.append(html.escape(right))
            continue
        first = step.src_start if first is None else first
        ours.append(f"<del>{html.escape(mine)}</del>" if mine else "")
        theirs.append(f"<ins>{html.escape(right)}</ins>" if right else "")
    made = [Markup("".join(parts)) for parts in (ours, theirs)]  # noqa: S704 - every text was escaped above
    return made[0], made[1], len(reference) if first is None else first


def _svg(figure: Any) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704 - made by matplotlib, which escapes labels


def _axes(x: str, y: str) -> tuple[Any, Any]:
    figure, axes = pyplot.subplots(figsize=(5.2, 3.2))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _training_plot(lines: Sequence[dict[str, Any]]) -> Markup:
    figure, axes = _axes("step", "loss (nats a token)")
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    axes.plot(*zip(*losses, strict=True), color=BLUE, linewidth=1.2, label="loss")
    validations = [(line["step"], line["validation"]["exact_match"]) for line in lines if "validation" in line]
    if validations:
        right = axes.twinx()
        right.plot(*zip(*validations, strict=True), color="#c2571a", marker="o", markersize=3, linewidth=1)
        right.set_ylabel("validation exact match", color="#c2571a")
        right.spines[["top"]].set_visible(False)
        right.set_ylim(bottom=0)
    return _svg(figure)


def _reliability_plot(predictions: Sequence[Prediction]) -> Markup:
    confidence = np.array([_confidence(p) for p in predictions])
    right = np.array([p.prediction == p.reference for p in predictions], dtype=float)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, NUM_BINS + 1)))
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, max(0, len(edges) - 2))
    figure, axes = _axes("confidence (probability of the whole answer)", "share that is right")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    points = [(confidence[bins == b].mean(), right[bins == b].mean()) for b in np.unique(bins)]
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return _svg(figure)


def _coverage_plot(predictions: Sequence[Prediction]) -> Markup:
    order = np.argsort([-_confidence(p) for p in predictions], kind="stable")
    right = np.array([p.prediction == p.reference for p in predictions], dtype=float)[order]
    counts = np.arange(1, len(right) + 1)
    figure, axes = _axes("share answered, surest first", "share of these that is right")
    axes.plot(counts / len(right), right.cumsum() / counts, color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return _svg(figure)


def _study_page(folder: Path) -> str:
    summary, results = polars.read_csv(folder / "summary.csv"), polars.read_csv(folder / "results.csv")
    axes = summary.columns[: summary.columns.index("seeds")]
    scores = [name for name in SCORES if name in summary.columns and summary[name].max() is not None]
    shown = [c for c in summary.columns if not c.endswith(("_low", "_high"))]
    rows = [[_shown(row, c) for c in shown] for row in summary.iter_rows(named=True)]
    settings = folder / "study.yaml"
    failures = json.loads((folder / "failures.json").read_text()) if (folder / "failures.json").exists() else []
    return _render(
        "study.html", title=folder.resolve().name, headings=[c.replace("_", " ") for c in shown], rows=rows,
        plots=_study_plots(summary, axes, scores[:2]),
        forecast=_forecast_text(summary, axes), failures=failures, num_points=results.height,
        settings=settings.read_text() if settings.exists() else "",
    )  # fmt: skip


def _shown(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if value is None:
        return "-"
    if column in SCORES:
        return f"{value:.3f} ({row[f'{column}_low']:.3f} to {row[f'{column}_high']:.3f})"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _study_plots(summary: polars.DataFrame, axes: Sequence[str], scores: Sequence[str]) -> list[tuple[str, Markup]]:
    """Lines along the axes of a grid; bars for a list of points, which have no axes to speak of."""
    varied = [name for name in axes if summary[name].n_unique() > 1]
    is_grid = summary.height == math.prod(summary[name].n_unique() for name in varied)
    if is_grid and summary.height <= MAX_LINES:
        pairs = [(axis, score) for axis in varied for score in scores]
        return [(f"{axis} and {score.replace('_', ' ')}", _axis_plot(summary, axis, score, axes)) for axis, score in pairs]
    groups = summary.group_by("budget", maintain_order=True) if "budget" in axes else [(("",), summary)]
    return [
        (f"{score.replace('_', ' ')}{f', {budget}' if budget else ''}", _bars(group, score, [a for a in axes if a != "budget"]))
        for (budget,), group in groups
        for score in scores
    ]


def _bars(group: polars.DataFrame, score: str, axes: Sequence[str]) -> Markup:
    figure, plot = pyplot.subplots(figsize=(5.2, 0.6 + 0.28 * group.height))
    labels = []
    for row in group.iter_rows(named=True):
        parts = [f"{name.rpartition('.')[2]} {row[name]}" for name in axes if row[name] is not None]
        labels.append(", ".join(parts) or "base")
    means, low, high = (group[f"{score}{end}"].to_numpy() for end in ("", "_low", "_high"))
    bounds = [np.maximum(means - low, 0), np.maximum(high - means, 0)]
    plot.barh(labels, means, xerr=bounds, color=BLUE, height=0.6, error_kw={"elinewidth": 0.8, "ecolor": GREY, "capsize": 2})
    plot.invert_yaxis()
    plot.set_xlabel(score.replace("_", " "))
    plot.tick_params(axis="y", labelsize=8)
    plot.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _axis_plot(summary: polars.DataFrame, axis: str, score: str, axes: Sequence[str]) -> Markup:
    """The score along one axis, a line for each combination of the others."""
    others = [name for name in axes if name != axis and summary[name].n_unique() > 1]
    figure, plot = _axes(axis, score.replace("_", " "))
    numeric = summary[axis].dtype.is_numeric() and summary[axis].null_count() == 0
    groups = summary.group_by(others, maintain_order=True) if others else [((), summary)]
    for key, group in groups:
        values, means = group[axis].to_list(), group[score].to_numpy()
        low, high = means - group[f"{score}_low"].to_numpy(), group[f"{score}_high"].to_numpy() - means
        places = values if numeric else [str(v) for v in values]
        label = ", ".join(f"{n.rpartition('.')[2]} {v}" for n, v in zip(others, key, strict=True) if v is not None)
        style = {"marker": "o", "capsize": 2, "linewidth": 1.2 if numeric else 0, "elinewidth": 1, "markersize": 4}
        plot.errorbar(places, means, yerr=[np.maximum(low, 0), np.maximum(high, 0)], label=label or None, **style)
    if numeric and summary[axis].min() > 0 and summary[axis].max() / summary[axis].min() >= 20:  # type: ignore[operator]
        plot.set_xscale("log")
    if not numeric:
        figure.autofmt_xdate(rotation=30)
    if others and summary.height <= MAX_LEGEND:
        plot.legend(fontsize=6, frameon=False)
    return _svg(figure)


def _forecast_text(summary: polars.DataFrame, axes: Sequence[str]) -> list[str]:
    """What the scores along the number of examples say about more of them."""
    axis = "data.num_examples"
    if axis not in axes or summary[axis].n_unique() <= analysis.MIN_SIZES:
        return []
    others = [name for name in axes if name != axis and summary[name].n_unique() > 1]
    texts = []
    for key, group in summary.group_by(others, maintain_order=True) if others else [((), summary)]:
        for score in ("exact_match", "edit_similarity"):
            sizes, values = group[axis].to_list(), group[score].to_list()
            halves = ((group[f"{score}_high"] - group[f"{score}_low"]) / 2).to_list()
            checked = analysis.check_forecast(sizes, values, halves)
            if checked is None:
                continue
            name = ", ".join(map(str, key)) + ": " if others else ""
            found, measured = checked
            law = analysis.fit(sizes, [1 - v for v in values])
            double = 1 - float(law.error(2 * max(sizes)))
            texts.append(
                f"{name}{score.replace('_', ' ')}: the smaller sizes predict {found.value:.3f} "
                f"({found.low:.3f} to {found.high:.3f}) for {max(sizes):,} examples; measured {measured:.3f}. "
                f"All sizes together give {double:.3f} at twice as many, and a ceiling of {1 - law.offset:.3f}."
            )
    return texts
