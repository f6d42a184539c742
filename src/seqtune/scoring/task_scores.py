"""Scores by a pack's own metrics, of its verifier, and of the tools that the model is compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from seqtune.data.splits import unit_hash
from seqtune.plugins import Judgement, TaskMetrics
from seqtune.records import Prediction
from seqtune.scoring.significance import defined, mean_score

Rows = TypeVar("Rows", bound=Sequence[Any])
MAX_TRAINING = 100_000  # rows that inputs are looked up in; of a longer list, every n-th
NUM_BASELINE_ITEMS = 1000  # rule-based tools take up to a second an item
EXACT = "prediction == reference|case:mixed|space:as is"


def task_scores(
    predictions: Sequence[Prediction], task: TaskMetrics, training: Sequence[tuple[str, str]] | None
) -> dict[str, Any]:
    """The scores by the task's own metrics: of the predictions, of each stratum, of the references, and of the baselines.

    Args:
        predictions: with references.
        task: the task's own metrics.
        training: (input, output) rows for the baselines; empty if they are unknown, `None` for no baselines.

    Returns:
        A score per value of the task; `undefined` (name -> why there is no score), `items` (columns to keep with the
        predictions), `gold_ceiling`, `strata`, `baselines`.
    """
    inputs, references = [p.input for p in predictions], [p.reference or "" for p in predictions]
    texts = [p.prediction for p in predictions]
    judgement = task.judge(inputs, texts, references)
    result = _scores(judgement, task)
    result["undefined"] = {name: "no item counts" for name in judgement.values if name not in result}
    result["items"] = judgement.columns
    ceiling = task.judge(inputs, references, references)
    result["gold_ceiling"] = {name: value for name, value in _scores(ceiling, task).items() if name == task.primary}
    if task.primary in judgement.values:
        exact = [t == r for t, r in zip(texts, references, strict=True)]
        values = {task.primary: judgement.values[task.primary], "exact_match": exact}
        result["strata"] = {name: _by_label(labels, values) for name, labels in judgement.strata.items()}
    if training is not None:
        training = thinned(training)
        result["baseline_training_rows"] = len(training)
        sample = sorted(range(len(inputs)), key=lambda i: unit_hash(inputs[i], 0, "baselines"))[:NUM_BASELINE_ITEMS]
        result["baselines"] = _baselines([inputs[i] for i in sample], [references[i] for i in sample], task, training)
    return result


def thinned(training: Rows) -> Rows:
    """At most `MAX_TRAINING` rows, taken evenly."""
    rows: Any = training[:: max(1, -(-len(training) // MAX_TRAINING))]
    return rows


def _scores(judgement: Judgement, task: TaskMetrics) -> dict[str, Any]:
    return defined({name: mean_score(values, task.signatures[name]) for name, values in judgement.values.items()})


def _by_label(labels: Sequence[str], values: Mapping[str, Sequence[float | bool | None]]) -> list[dict[str, Any]]:
    """Scores of the items under each label, numbers in their order first."""
    rows = []
    for label in sorted(set(labels), key=_number_first):
        inside = [i for i, own in enumerate(labels) if own == label]
        scores = {name: mean_score([column[i] for i in inside], "stratum") for name, column in values.items()}
        rows.append({"label": label, "num_items": len(inside), **defined(scores)})
    return rows


def _number_first(label: str) -> tuple[float, str]:
    number = re.match(r"\d+", label)
    return (float(number[0]) if number else float("inf"), label)


def _baselines(
    inputs: list[str], references: list[str], task: TaskMetrics, training: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    found = {}
    for name, answers in task.baselines(inputs, training).items():
        exact = defined({"exact_match": mean_score([a == r for a, r in zip(answers, references, strict=True)], EXACT)})
        scores = _scores(task.judge(inputs, answers, references), task)
        shown = {key: scores[key] for key in dict.fromkeys((*task.against_reference, task.primary)) if key in scores}
        found[name] = {"num_items": len(inputs), **exact, **shown}
    return found


def verification_scores(predictions: Sequence[Prediction], task: TaskMetrics | None) -> dict[str, Any]:
    """How much verifying helped, by measures that compare with the references and never ask the verifier.

    Returns:
        `coverage`: items with a verified answer. `top1_verified`: items whose first answer is verified. `found`: items
        with the reference among the hypotheses. And for exact match and each of the task's reference measures: `top1`
        (the search's first answers), `returned` (what was returned; an abstention is wrong), `precision` (of the verified
        answers), `rest` (first answers of the items without a verified one). What no item counts for is left out.
    """
    references = [p.reference or "" for p in predictions]
    passed = np.array([p.status == "verified" for p in predictions])
    first = [bool(p.hypotheses) and p.hypotheses[0].verdict == "verified" for p in predictions]
    found = [any(h.text == r for h in p.hypotheses) for p, r in zip(predictions, references, strict=True)]
    result: dict[str, Any] = {"num_hypotheses": max((len(p.hypotheses) for p in predictions), default=0)}
    result |= defined(
        {
            "coverage": mean_score(passed, "items with a verified answer"),
            "top1_verified": mean_score(first, "items whose first answer is verified"),
            "found": mean_score(found, "items with the reference among the hypotheses"),
        }
    )
    tops = [p.hypotheses[0].text if p.hypotheses else "" for p in predictions]
    before = _against_reference(tops, predictions, task)
    after = _against_reference([p.prediction for p in predictions], predictions, task)
    for name, top in before.items():
        result[name] = defined(
            {
                "top1": mean_score(top, "first answers"),
                "returned": mean_score(after[name], "returned answers"),
                "precision": mean_score(after[name][passed], "verified answers"),
                "rest": mean_score(top[~passed], "first answers of items without a verified one"),
            }
        )
    return result


def _against_reference(
    texts: Sequence[str], predictions: Sequence[Prediction], task: TaskMetrics | None
) -> dict[str, np.ndarray]:
    """Values per item, `None` where an item does not count: object arrays [N]."""
    references = [p.reference or "" for p in predictions]
    found: dict[str, Sequence[Any]] = {"exact_match": [t == r for t, r in zip(texts, references, strict=True)]}
    if task is not None and task.against_reference:
        values = task.judge([p.input for p in predictions], texts, references).values
        found |= {name: values[name] for name in task.against_reference}
    return {name: np.array(column, dtype=object) for name, column in found.items()}
