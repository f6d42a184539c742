"""A run's or an evaluation's page: scores, curves, tables, and every wrong answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from seqtune import runs
from seqtune.report.answers import confidence_plots, wrong_answers
from seqtune.report.parts import BLUE, ORANGE, new_axes, render, svg
from seqtune.report.scores import rows_table, scores_of
from seqtune.scoring.evaluate import read_predictions
from seqtune.training.log import read_log

MAX_ERRORS = 300
MAX_PICTURES = 60


def run_page(folder: Path) -> str:
    """The page of a folder with `metrics.json` and `predictions.jsonl`."""
    metrics = runs.read_json(folder / "metrics.json")
    predictions = read_predictions(folder)
    lines = read_log(folder)
    plots = [("Training", _training_plot(lines))] if any("loss" in line for line in lines) else []
    plots += confidence_plots(predictions)
    tables = [("By input length", *_length_table(metrics))] if len(metrics.get("by_input_length", [])) > 1 else []
    tables += [(f"By {name}", *rows_table(name, rows)) for name, rows in metrics.get("strata", {}).items() if len(rows) > 1]
    if metrics.get("baselines"):
        rows = [{"label": name, **row} for name, row in metrics["baselines"].items()]
        tables.insert(0, ("Other tools on the same items", *rows_table("tool", rows)))
    return render(
        "run.html", title=folder.resolve().name, summary=_summary(metrics, folder, lines), plots=plots, tables=tables,
        scores=scores_of(metrics).items(), undefined=metrics.get("undefined", {}), ceiling=metrics.get("gold_ceiling", {}),
        answers=wrong_answers(predictions, folder / "task.yaml", MAX_ERRORS, MAX_PICTURES),
    )  # fmt: skip


def _summary(metrics: dict[str, Any], folder: Path, log: Sequence[dict[str, Any]]) -> list[str]:
    exact = metrics["exact_match"]
    lines = [
        f"{100 * exact['value']:.1f}% of {metrics['num_items']:,} held-out answers are exactly right "
        f"(95% interval {100 * exact['low']:.1f}% to {100 * exact['high']:.1f}%)."
    ]
    if "structure_accuracy" in metrics:
        value = metrics["structure_accuracy"]
        lines.append(f"{100 * value['value']:.1f}% mean the right structure.")
    environment = folder / "environment.json"
    trained = [line for line in log if "loss" in line]
    if environment.exists() and trained:
        last = trained[-1]
        lines.append(
            f"Trained for {last['seconds'] / 60:.1f} minutes, {last['step']:,} steps, {last['num_tokens']:,} tokens on "
            f"{runs.read_json(environment).get('device', 'an unknown device')}."
        )
    return lines


def _length_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [{**row, "label": f"{row['min_characters']}-{row['max_characters']}"} for row in metrics["by_input_length"]]
    return rows_table("characters", rows)


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
