"""A study's page: what was found, scores along the axes, learning curves, paired tests, a forecast."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars
from markupsafe import Markup
from matplotlib import pyplot

from seqtune.errors import ConfigError, RunError, did_you_mean
from seqtune.report.answers import confidence_plots, wrong_answers
from seqtune.report.parts import BLUE, GREY, new_axes, render, svg
from seqtune.report.scores import interval
from seqtune.scoring.evaluate import read_predictions
from seqtune.studies import analysis
from seqtune.studies.tables import COMPARED, MAX_COMPARED, SCORES, VALIDATION, label, ranking, shares_of, short, starved
from seqtune.training.log import read_log
from seqtune.yaml_files import read_yaml_mapping

EXAMPLES = "data.num_examples"
MAX_LEGEND = 40
MAX_ERRORS, MAX_PICTURES = 100, 30  # of the best point
BUSY = 0.5  # a point that got less of a processor than this did not train for its minutes
FEW = 3  # points of a curve that are marked, for a line through them would hardly show
MAX_LINES = 200  # points of a grid that lines can show


def study_page(folder: Path) -> str:
    """The page of a folder with a study's `summary.csv`."""
    summary, results = polars.read_csv(folder / "summary.csv"), polars.read_csv(folder / "results.csv")
    axes = summary.columns[: summary.columns.index("seeds")]
    scores = [name for name in SCORES if name in summary.columns and summary[name].max() is not None]
    shown = _columns(summary, axes)
    rows = [[_shown(row, c) for c in shown] for row in summary.iter_rows(named=True)]
    settings = folder / "study.yaml"
    study = read_yaml_mapping(settings, "study") if settings.exists() else {}
    search, failures = _json(folder / "search.json"), _json(folder / "failures.json") or []
    comparisons = _comparisons(folder / "comparisons.csv")
    plots = _search_plots(search) if search else _study_plots(summary, axes, scores[:2])
    return render(
        "study.html", title=study.get("name") or folder.resolve().name,
        headings=[c.replace("_", " ") for c in shown], rows=rows,
        findings=_findings(summary, results, search, comparisons), budget=_budget(study.get("budget")),
        plots=plots, curves=_learning_curves(results, axes), comparisons=comparisons,
        compared_with=_chosen_by(ranking(results)) if summary.height > MAX_COMPARED else "",
        missing=not any((_evaluation(row) / "predictions.jsonl").exists() for row in results.iter_rows(named=True)),
        trials=_trials(search) if search else None, importances=search["importances"] if search else {},
        best=_best(results, axes, search), forecast=_forecast_text(summary, axes), failures=failures, num_points=results.height,
        settings=settings.read_text(encoding="utf-8") if settings.exists() else "",
    )  # fmt: skip


def _columns(summary: polars.DataFrame, axes: Sequence[str]) -> list[str]:
    """What a small screen shows first comes first: what was varied, the scores, then the rest."""
    shown = [c for c in summary.columns if not c.endswith(("_low", "_high"))]
    varied = [c for c in axes if summary[c].n_unique() > 1]
    scores = [c for c in SCORES if c in shown]
    return [*varied, *scores, *(c for c in shown if c not in varied and c not in scores)]


def _best(results: polars.DataFrame, axes: Sequence[str], search: Any) -> dict[str, Any] | None:
    """Curves and wrong answers of the best point whose run is still there, and how it was chosen."""
    rows = [row for row in results.iter_rows(named=True) if (_evaluation(row) / "predictions.jsonl").exists()]
    if not rows:
        return None
    columns = ranking(results)
    if search:  # what it went by comes first
        columns = sorted(columns, key=lambda name: not name.endswith(search["metric"]))
    row = max(rows, key=lambda row: [row[name] for name in columns])
    predictions = read_predictions(_evaluation(row))
    return {
        "chosen_by": _chosen_by(columns),
        "name": label(row, [name for name in axes if results[name].n_unique() > 1]),
        "plots": confidence_plots(predictions),
        "answers": wrong_answers(predictions, Path(row["run"]) / "task.yaml", MAX_ERRORS, MAX_PICTURES),
    }


def _chosen_by(columns: Sequence[str]) -> str:
    if columns[0].startswith(VALIDATION):
        return "It was chosen by the validation rows; the test rows took no part."
    return (
        "It was chosen by the test rows that it is judged on here, because not every point has a validation of its own: "
        "its scores are a little too good."
    )


def _evaluation(row: dict[str, Any]) -> Path:
    return Path(row.get("evaluation") or "absent")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _budget(budget: Any) -> str:
    """What is equal for the points of a table."""
    if not budget:
        return "no common budget: each point trains as long as its settings say"
    several = budget if isinstance(budget, list) else [budget]
    return "equal for all points: " + ", or ".join(f"{b['value']:g} {b['kind'].replace('_', ' ')}" for b in several)


def _findings(
    summary: polars.DataFrame, results: polars.DataFrame, search: Any, comparisons: Sequence[Sequence[str]]
) -> list[str]:
    """What a person wants to know first."""
    varied = [name for name in summary.columns[: summary.columns.index("seeds")] if summary[name].n_unique() > 1]
    rows = list(summary.iter_rows(named=True))
    lines = []
    if unequal := starved(results):
        lines.append(
            f"The machine was not equally free: points with a limit of minutes got between {unequal[0]:.0%} and "
            f"{unequal[1]:.0%} of a processor, so they did not do equal work. Pairs that differ in this are not tested; run "
            "them again when it is quiet, or with a budget of steps."
        )
    elif (shares := shares_of(results)) and shares[1] < BUSY:
        lines.append(
            f"The machine was busy: no point with a limit of minutes got more than {shares[1]:.0%} of a processor, so all of "
            "them trained for far less than their minutes. Run them again when it is quiet, or with a budget of steps."
        )
    if search and search["best"]:
        best = search["best"]
        chosen = ", ".join(f"{name} {short(value)}" for name, value in best["values"].items())
        lines.append(
            f"Best of {len(search['trials'])} points by {search['metric'].replace('_', ' ')} on the validation rows "
            f"({best['validation']:.3f}): {chosen}. The test rows took no part in the choice."
        )
    for name in COMPARED:
        low, high = (pick(rows, key=lambda row, name=name: row[name]) for pick in (min, max))
        if high[name] > low[name]:
            lines.append(
                f"Test {name.replace('_', ' ')} runs from {_shown(low, name)} ({label(low, varied)}) "
                f"to {_shown(high, name)} ({label(high, varied)})."
            )
    if comparisons:
        tested = [row for row in comparisons if row[-2] != "-"]
        surely = sum(float(row[-1]) < 0.05 for row in tested)
        lines.append(f"{surely} of {len(tested)} paired comparisons differ at a false discovery rate of 5%.")
    return lines


def _comparisons(path: Path) -> list[list[str]]:
    """Rows of the table of paired tests, as text."""
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        return []
    rows = []
    for row in polars.read_csv(path).iter_rows(named=True):
        scores = [f"{row[key]:.3f}" for key in ("score_a", "score_b")]
        tests = [f"{row[key]:.4f}" for key in ("p_value", "p_adjusted")] if row["p_value"] is not None else ["-", row["note"]]
        rows.append([row["metric"].replace("_", " "), row["a"], row["b"], *scores, f"{row['difference']:+.3f}", *tests])
    return rows


def _learning_curves(results: polars.DataFrame, axes: Sequence[str]) -> list[tuple[str, Markup]]:
    """Loss over the training of each point, if its run is still there."""
    if "run" not in results.columns:
        return []
    varied = [name for name in axes if results[name].n_unique() > 1]
    lines: dict[str, tuple[str, list[tuple[float, float, float]]]] = {}
    for row in results.iter_rows(named=True):
        log = [] if row["run"] in lines else read_log(Path(row["run"]))
        points = [(line["num_tokens"], line["seconds"], line["loss"]) for line in log if "loss" in line]
        if points:
            lines[row["run"]] = (label(row, varied), points)
    if len(lines) < 2 or len(lines) > MAX_LEGEND:
        return []
    plots = []
    for index, measure in ((0, "tokens read"), (1, "seconds of training")):
        figure, plot = new_axes(measure, "training loss (nats a token)")
        for name, points in lines.values():
            marker = "o" if len(points) < FEW else None  # a line through a single point shows nothing
            plot.plot([p[index] for p in points], [p[2] for p in points], linewidth=1, marker=marker, markersize=4, label=name)
        plot.legend(fontsize=6, frameon=False)
        plots.append((f"Loss against {measure}", svg(figure)))
    return plots


def _trials(search: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for trial in search["trials"] for name in trial["values"]))
    rows = []
    for trial in search["trials"]:
        value = "-" if trial["validation"] is None else f"{trial['validation']:.4f}"
        chosen = [trial["values"].get(name) for name in names]
        rows.append([str(trial["number"]), trial["state"], value, *map(short, chosen)])
    return ["point", "state", f"validation {search['metric'].replace('_', ' ')}", *names], rows


def _search_plots(search: dict[str, Any]) -> list[tuple[str, Markup]]:
    """The validation metric against each setting; pruned points are hollow."""
    trials = [trial for trial in search["trials"] if trial["validation"] is not None]
    plots = []
    for name in dict.fromkeys(name for trial in trials for name in trial["values"]):
        figure, plot = new_axes(name, f"validation {search['metric'].replace('_', ' ')}")
        numbers = [t["values"][name] for t in trials if isinstance(t["values"].get(name), int | float)]
        for state, face in (("complete", BLUE), ("pruned", "none")):
            some = [t for t in trials if t["state"] == state and name in t["values"]]
            places = [t["values"][name] if numbers else str(t["values"][name]) for t in some]
            plot.scatter(places, [t["validation"] for t in some], facecolors=face, edgecolors=BLUE, s=22, label=state)
        if numbers and min(numbers) > 0 and max(numbers) / min(numbers) >= 20:
            plot.set_xscale("log")
        plot.legend(fontsize=7, frameon=False)
        plots.append((name, svg(figure)))
    return plots


def _shown(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if value is None:
        return "-"
    if column in SCORES:
        return interval({"value": value, "low": row[f"{column}_low"], "high": row[f"{column}_high"]})
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


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
    labels = [label(row, axes) for row in group.iter_rows(named=True)]
    means, low, high = (group[f"{score}{end}"].to_numpy() for end in ("", "_low", "_high"))
    bounds = [np.maximum(means - low, 0), np.maximum(high - means, 0)]
    plot.barh(labels, means, xerr=bounds, color=BLUE, height=0.6, error_kw={"elinewidth": 0.8, "ecolor": GREY, "capsize": 2})
    plot.invert_yaxis()
    plot.set_xlabel(score.replace("_", " "))
    plot.tick_params(axis="y", labelsize=8)
    plot.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _axis_plot(summary: polars.DataFrame, axis: str, score: str, axes: Sequence[str]) -> Markup:
    """The score along one axis, a line for each combination of the others."""
    others = [name for name in axes if name != axis and summary[name].n_unique() > 1]
    figure, plot = new_axes(axis, score.replace("_", " "))
    numeric = summary[axis].dtype.is_numeric() and summary[axis].null_count() == 0
    groups = summary.group_by(others, maintain_order=True) if others else [((), summary)]
    for key, group in groups:
        values, means = group[axis].to_list(), group[score].to_numpy()
        low, high = means - group[f"{score}_low"].to_numpy(), group[f"{score}_high"].to_numpy() - means
        places = values if numeric else [str(v) for v in values]
        name = label(dict(zip(others, key, strict=True)), others) if others else None
        style = {"marker": "o", "capsize": 2, "linewidth": 1.2 if numeric else 0, "elinewidth": 1, "markersize": 4}
        plot.errorbar(places, means, yerr=[np.maximum(low, 0), np.maximum(high, 0)], label=name, **style)
    if numeric and summary[axis].min() > 0 and summary[axis].max() / summary[axis].min() >= 20:  # type: ignore[operator]
        plot.set_xscale("log")
    if not numeric:
        figure.autofmt_xdate(rotation=30)
    if others and summary.height <= MAX_LEGEND:
        plot.legend(fontsize=6, frameon=False)
    return svg(figure)


def _curves(summary: polars.DataFrame, axes: Sequence[str]) -> list[tuple[str, list[int], polars.DataFrame]]:
    """The summary's rows along the number of examples: a label, the sizes, and the rows for each setting of the other axes.

    A point without a number has the whole table, so it counts with the rows that it was trained on. A setting with fewer than
    three sizes has no curve.
    """
    if EXAMPLES not in axes:
        return []
    whole = polars.col("training_rows") if "training_rows" in summary.columns else polars.lit(None)
    sized = summary.with_columns(polars.coalesce(EXAMPLES, whole).cast(polars.Int64)).drop_nulls(EXAMPLES)
    others = [name for name in axes if name != EXAMPLES and summary[name].n_unique() > 1]
    groups = sized.group_by(others, maintain_order=True) if others else [((), sized)]
    curves = [(", ".join(map(str, key)), group[EXAMPLES].to_list(), group) for key, group in groups]
    return [curve for curve in curves if len(set(curve[1])) >= analysis.MIN_SIZES]


def _halves(group: polars.DataFrame, score: str) -> list[float]:
    return ((group[f"{score}_high"] - group[f"{score}_low"]) / 2).to_list()


def _forecast_text(summary: polars.DataFrame, axes: Sequence[str]) -> list[str]:
    """What the scores along the number of examples say about more of them."""
    texts = []
    for points, sizes, group in _curves(summary, axes):
        for score in COMPARED:
            values, halves = group[score].to_list(), _halves(group, score)
            checked = analysis.check_forecast(sizes, values, halves)
            name = f"{points}: " if points else ""
            if checked is not None:
                found, measured = checked
                texts.append(
                    f"{name}{score.replace('_', ' ')}: the smaller sizes predict {found.value:.3f} "
                    f"({found.low:.3f} to {found.high:.3f}) for {max(sizes):,} examples; measured {measured:.3f}."
                )
            target = math.ceil(20 * max(values) + 1e-9) / 20  # the next twentieth
            if target > 1:
                continue
            texts.append(_examples_text(name, score, target, analysis.examples_for(sizes, values, halves, target), max(sizes)))
    return texts


def _examples_text(name: str, score: str, target: float, found: analysis.Forecast, largest: int) -> str:
    named = f"{name}{score.replace('_', ' ')} {target:g}"
    if math.isinf(found.value):
        least = "" if math.isinf(found.low) else f"; the most hopeful resamples need {_rounded(found.low)}"
        return f"{named}: beyond the ceiling of the curve, however many examples{least}."
    high = "no number" if math.isinf(found.high) else _rounded(found.high)
    more = f", {_rounded(found.value - largest)} more than the largest point" if found.value > largest else ""
    return f"{named}: about {_rounded(found.value)} examples ({_rounded(found.low)} to {high}){more}."


def _rounded(count: float) -> str:
    """Two digits: an extrapolation knows no more."""
    return f"{float(f'{count:.2g}'):,.0f}"


def examples_for(folder: Path, target: str) -> list[dict[str, Any]]:
    """How many training examples a score would take, by each curve of a study along `data.num_examples`.

    Args:
        folder: of a study that was run.
        target: such as `exact_match=0.5`.

    Raises:
        RunError: there is no such study or score, or it has fewer than three sizes.
        ConfigError: the target cannot be read.
    """
    score, _, text = target.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ConfigError(f"--target {target!r}: write METRIC=SCORE with a score between 0 and 1, such as exact_match=0.5")
    path = folder / "summary.csv"
    if not path.exists():
        raise RunError(f"{str(path)!r} does not exist; run the study first")
    summary = polars.read_csv(path)
    scores = [name for name in SCORES if name in summary.columns]
    if score not in scores:
        raise ConfigError(
            f"--target {target!r}: the study has no score {score!r}{did_you_mean(score, scores)}; {', '.join(scores)}"
        )
    curves = _curves(summary.drop_nulls(score), summary.columns[: summary.columns.index("seeds")])
    if not curves:
        raise RunError(f"a forecast needs an axis {EXAMPLES} with at least {analysis.MIN_SIZES} sizes")
    rows = []
    for points, sizes, group in curves:
        found = analysis.examples_for(sizes, group[score].to_list(), _halves(group, score), value)
        limits = {k: None if math.isinf(v) else round(v) for k, v in asdict(found).items()}  # JSON knows no infinity
        text = _examples_text(f"{points}: " if points else "", score, value, found, max(sizes))
        rows.append({"points": points, **limits, "largest": max(sizes), "text": text})
    return rows
