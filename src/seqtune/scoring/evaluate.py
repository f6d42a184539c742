"""Predictions and references -> scores with intervals, overall and by input length; no model, no torch."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqtune import plugins
from seqtune.data.archives import BROKEN, check_expansion
from seqtune.data.tasks import Task
from seqtune.errors import DataError, near_path
from seqtune.plugins import TaskMetrics
from seqtune.records import Example, Hypothesis, Prediction, Turn, lone_surrogate
from seqtune.runs import PREDICTIONS, is_complete
from seqtune.scoring.metrics import METRICS
from seqtune.scoring.metrics.answers import NUM_BINS, answer_metrics, calibration_error, probability_statistics
from seqtune.scoring.metrics.base import mean
from seqtune.scoring.significance import defined, paired_randomization, score
from seqtune.scoring.task_scores import task_scores, thinned, verification_scores

NUM_STRATA = 4
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_predictions(path: str | Path, reference: str = "reference") -> list[Prediction]:
    """Read `predictions.jsonl`; only `prediction` and `reference` are required, rows without reference are refused.

    Args:
        path: the file, or the run or evaluation folder that holds it; a folder of `part-*.jsonl` that `seqtune predict` has
            finished; or a .csv or .tsv with the same columns.
        reference: what the references are called.

    Raises:
        DataError: the file is missing or empty, or a line is broken; names the line.
    """
    file = Path(path)
    if file.is_dir():
        shards = sorted(file.glob("part-*.jsonl"))
        file /= PREDICTIONS
        if shards and not file.exists():
            return _of_shards(Path(path), shards, reference)
    if not file.is_file():
        near = near_path(Path(path)) or f"; it should be a {PREDICTIONS}, or a folder that holds one"
        raise DataError(f"{str(file)!r} does not exist{near}")
    try:
        # not splitlines(): it also splits at U+2028, U+0085 and others, which stand unescaped inside JSON texts
        with file.open(encoding="utf-8-sig", newline="" if file.suffix in DELIMITERS else None) as lines:
            return _predictions(lines, str(path), DELIMITERS.get(file.suffix), reference)
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text: {error}") from None
    except csv.Error as error:
        raise DataError(f"{str(path)!r} cannot be read as a table: {error}") from None


def _of_shards(folder: Path, shards: Sequence[Path], reference: str) -> list[Prediction]:
    if not is_complete(folder):
        raise DataError(
            f"{str(folder)!r} holds {len(shards):,} files of answers and is not finished; give the `seqtune predict` command "
            "again, which goes on with the rest"
        )
    return [prediction for shard in shards for prediction in read_predictions(shard, reference)]


def read_archive(path: str | Path, reference: str = "reference") -> dict[str, list[Prediction]]:
    """Every predictions.jsonl in a zip, such as the carbon copy of a study, by its folder in there.

    Raises:
        DataError: it is no zip, holds none, or a line is broken; names the line.
    """
    if not Path(path).is_file():
        raise DataError(f"{str(path)!r} does not exist{near_path(Path(path))}")
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            files = [entry for entry in archive.infolist() if Path(entry.filename).name == PREDICTIONS]
            check_expansion(Path(path), files)
            for entry in files:
                with io.TextIOWrapper(archive.open(entry), encoding="utf-8") as lines:
                    found[str(Path(entry.filename).parent)] = _predictions(lines, f"{path}/{entry.filename}", None, reference)
    except (OSError, UnicodeDecodeError, NotImplementedError, RuntimeError, *BROKEN) as error:
        raise DataError(f"{str(path)!r} cannot be read as a zip: {error}") from None
    if not found:
        raise DataError(f"{str(path)!r} holds no {PREDICTIONS}, which `seqtune study FILE --export FILE.zip` puts there")
    return found


def _predictions(lines: Iterable[str], name: str, delimiter: str | None, reference: str) -> list[Prediction]:
    if delimiter:
        reader = csv.DictReader(lines, delimiter=delimiter)
        lacking = [column for column in ("prediction", reference) if column not in (reader.fieldnames or ())]
        if lacking:
            raise DataError(
                f"{name!r} has no column {lacking[0]!r}; scoring needs the answers in a column 'prediction' and what is right "
                f"in 'reference', or in another that --output names; columns: {', '.join(reader.fieldnames or ())}"
            )
        found = [_prediction(record, reader.line_num, name, reference) for record in reader]
    else:
        numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        found = [_prediction(_record(line, number, name), number, name, reference) for number, line in numbered]
    if not found:
        raise DataError(f"{name!r} holds no predictions")
    return found


def _record(line: str, number: int, path: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "" if number > 1 else "; a predictions file has one JSON object a line, or is a .csv or .tsv with a header"
        raise DataError(f"{path!r}, line {number}: not JSON ({error}){hint}") from None
    if not isinstance(record, dict):
        raise DataError(f"{path!r}, line {number}: not a JSON object")
    return record


def _prediction(record: dict[str, Any], number: int, path: str, reference: str) -> Prediction:
    lone = lone_surrogate(json.dumps(record, ensure_ascii=False))
    if lone:
        raise DataError(f"{path!r}, line {number}: a text holds {lone} alone, half of a surrogate pair, which is no character")
    for key in ("prediction", reference):
        if not isinstance(record.get(key), str):
            raise DataError(
                f"{path!r}, line {number}: {key!r} is {record.get(key)!r}; scoring needs a text there in every line"
            )
    identity, text = str(record.get("id", number)), str(record.get("input", ""))
    try:
        hypotheses = tuple(Hypothesis(**h) for h in record.get("hypotheses", []))
        details, fields = ({str(k): str(v) for k, v in record.get(name, {}).items()} for name in ("details", "fields"))
        context = tuple(Turn(**turn) for turn in record.get("context", []))
        likelihood = float(record.get("score") or 0.0)
    except (TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path!r}, line {number}: 'score', 'hypotheses', 'details', 'fields' or 'context' is not as seqtune writes it "
            f"({error})"
        ) from None
    return Prediction(
        identity, text, record[reference], record["prediction"], likelihood, hypotheses,
        str(record.get("status", "ok")), details, fields, context,
    )  # fmt: skip


def evaluate(
    predictions: Sequence[Prediction],
    task: TaskMetrics | None = None,
    training: Sequence[tuple[str, str]] | None = None,
    answers: Sequence[str] | None = None,
    *,
    ordered: bool = False,
) -> dict[str, Any]:
    """All text metrics, overall and by input length, and the task's own; the content of `metrics.json`.

    A metric that is undefined on these references has no score; `undefined` then holds its name and the reason.

    Args:
        predictions: with references.
        task: the task's own metrics.
        training: (input, output) rows for the baselines; empty if they are unknown, `None` for no baselines.
        answers: the only answers there are, for the metrics of classes; `None` for free text.
        ordered: they stand from low to high.

    Raises:
        DataError: there is nothing to score, or a reference is missing.
    """
    if not predictions:
        raise DataError("there are no predictions to score")
    missing = next((p for p in predictions if p.reference is None), None)
    if missing:
        raise DataError(f"item {missing.id!r} has no reference; scoring needs one for every item")
    hypotheses = [p.prediction for p in predictions]
    references = [p.reference or "" for p in predictions]
    statistics = {name: metric.statistics(hypotheses, references) for name, metric in METRICS.items()}
    scores = defined({name: score(metric.value, statistics[name], metric.signature) for name, metric in METRICS.items()})
    undefined = {name: metric.undefined for name, metric in METRICS.items() if name not in scores}
    if answers:
        of_classes, lacking = _class_scores(predictions, answers, ordered)
        scores, undefined = scores | of_classes, undefined | lacking
    statuses = [p.status for p in predictions]
    result: dict[str, Any] = {"num_items": len(predictions)} | scores
    result["status"] = {name: statuses.count(name) for name in sorted(set(statuses))}
    result["by_input_length"] = _strata([len(p.input) for p in predictions], statistics)
    if task is not None:
        own = task_scores(predictions, task, training)
        undefined |= own.pop("undefined")
        result |= own
    if any("verdict" in p.details for p in predictions):
        result["verification"] = verification_scores(predictions, task)
    return result | ({"undefined": undefined} if undefined else {})


def evaluate_task(
    predictions: Sequence[Prediction], task: Task, training: Sequence[Example] | None = None
) -> tuple[dict[str, Any], list[Prediction]]:
    """`evaluate` with the metrics of the task's pack; also returns the predictions with the details that these metrics add.

    Args:
        predictions: with references.
        task: a plain text task has no metrics of its own.
        training: rows for the baselines; empty if they are unknown, `None` for no baselines.

    Raises:
        DataError: as `evaluate`.
        MissingDependencyError: the pack's metrics need a package that is not installed.
    """
    own = plugins.find("metrics", task.pack.metrics)() if task.pack and task.pack.metrics else None
    rows = None if training is None else [(e.input, e.output or "") for e in thinned(training)]
    metrics = evaluate(predictions, own, rows, task.answers, ordered=task.ordered)
    columns = metrics.pop("items", {})
    return metrics, [
        dataclasses.replace(p, details={**p.details, **{name: texts[i] for name, texts in columns.items()}})
        for i, p in enumerate(predictions)
    ]


def _class_scores(
    predictions: Sequence[Prediction], answers: Sequence[str], ordered: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores of answers from a set and of their probabilities, and why a metric has none."""
    texts, references = [p.prediction for p in predictions], [p.reference or "" for p in predictions]
    metrics = answer_metrics(answers, ordered=ordered)
    scores = {name: score(m.value, m.statistics(texts, references), m.signature) for name, m in metrics.items()}
    undefined = {name: metric.undefined for name, metric in metrics.items() if scores[name] is None}
    if any(len(p.hypotheses) > 1 for p in predictions):
        bins, losses = probability_statistics(predictions)
        scores["calibration_error"] = score(
            calibration_error, bins, f"expected calibration error|bins:{NUM_BINS} of equal width"
        )
        scores["log_loss"] = score(mean, losses, "-log probability of the reference, nats|mean of items")
    return defined(scores), undefined


def _strata(lengths: list[int], statistics: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Exact match and edit similarity in bands of input length with about equally many items."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, NUM_STRATA + 1), method="inverted_cdf"))
    bands = np.clip(np.searchsorted(edges, lengths, side="left"), 1, max(1, len(edges) - 1))
    strata = []
    for band in np.unique(bands):
        inside = bands == band
        members = np.array(lengths)[inside]
        row: dict[str, Any] = {
            "min_characters": int(members.min()),
            "max_characters": int(members.max()),
            "num_items": int(inside.sum()),
        }
        metrics = [METRICS[name] for name in ("exact_match", "edit_similarity")]
        strata.append(row | defined({m.name: score(m.value, statistics[m.name][inside], m.signature) for m in metrics}))
    return strata


def compare(a: Sequence[Prediction], b: Sequence[Prediction]) -> dict[str, Any]:
    """Paired randomisation test of every metric between two systems on the same items.

    Raises:
        DataError: the files do not hold the same items with the same references.
    """
    other = {p.id: p for p in b}
    if len(other) != len(b) or len({p.id for p in a}) != len(a):
        raise DataError("an id appears twice in one of the files; items cannot be paired")
    if set(other) != {p.id for p in a}:
        only_a = [p.id for p in a if p.id not in other]
        only_b = sorted(set(other) - {p.id for p in a})
        raise DataError(
            f"the files hold different items: {len(only_a)} only in the first (such as {only_a[:3]}), "
            f"{len(only_b)} only in the second (such as {only_b[:3]})"
        )
    paired = [other[p.id] for p in a]
    for ours, theirs in zip(a, paired, strict=True):
        if ours.reference != theirs.reference:
            raise DataError(f"item {ours.id!r} has different references in the two files; they are not comparable")
    references = [p.reference or "" for p in a]
    result: dict[str, Any] = {"num_items": len(a)}
    undefined = {}
    for name, metric in METRICS.items():
        first, second = (metric.statistics([p.prediction for p in side], references) for side in (a, paired))
        if math.isnan(metric.value(first.sum(axis=0))):
            undefined[name] = metric.undefined
            continue
        outcome = paired_randomization(metric, first, second)
        result[name] = {
            "a": outcome.a,
            "b": outcome.b,
            "difference": outcome.difference,
            "p_value": outcome.p_value,
            "signature": f"{metric.signature}|paired randomization {outcome.num_swaps} swaps, two-sided, seed 0",
        }
    return result | ({"undefined": undefined} if undefined else {})
