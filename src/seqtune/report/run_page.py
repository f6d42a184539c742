"""A run's or an evaluation's page: scores, curves, tables, and every wrong answer."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rapidfuzz.distance import Levenshtein

from seqtune import plugins
from seqtune.evaluate import read_predictions
from seqtune.records import Prediction
from seqtune.report.parts import BLUE, GREY, ORANGE, new_axes, render, svg
from seqtune.tasks import Task

MAX_ERRORS = 300
MAX_PICTURES = 60
NUM_BINS = 8


def run_page(folder: Path) -> str:
    """The page of a folder with `metrics.json` and `predictions.jsonl`."""
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
    return render(
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


def _training_plot(lines: Sequence[dict[str, Any]]) -> Markup:
    figure, axes = new_axes("step", "loss (nats a token)")
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    axes.plot(*zip(*losses, strict=True), color=BLUE, linewidth=1.2, label="loss")
    validations = [(line["step"], line["validation"]["exact_match"]) for line in lines if "validation" in line]
    if validations:
        right = axes.twinx()
        right.plot(*zip(*validations, strict=True), color=ORANGE, marker="o", markersize=3, linewidth=1)
        right.set_ylabel("validation exact match", color=ORANGE)
        right.spines[["top"]].set_visible(False)
        right.set_ylim(bottom=0)
    return svg(figure)


def _reliability_plot(predictions: Sequence[Prediction]) -> Markup:
    confidence = np.array([_confidence(p) for p in predictions])
    right = np.array([p.prediction == p.reference for p in predictions], dtype=float)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, NUM_BINS + 1)))
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, max(0, len(edges) - 2))
    figure, axes = new_axes("confidence (probability of the whole answer)", "share that is right")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    points = [(confidence[bins == b].mean(), right[bins == b].mean()) for b in np.unique(bins)]
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return svg(figure)


def _coverage_plot(predictions: Sequence[Prediction]) -> Markup:
    order = np.argsort([-_confidence(p) for p in predictions], kind="stable")
    right = np.array([p.prediction == p.reference for p in predictions], dtype=float)[order]
    counts = np.arange(1, len(right) + 1)
    figure, axes = new_axes("share answered, surest first", "share of these that is right")
    axes.plot(counts / len(right), right.cumsum() / counts, color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return svg(figure)
