"""Scores of many tasks: one for each, and the unweighted mean of each cluster with an interval over its tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seqtune import plugins
from seqtune.data.asking import MixedTask
from seqtune.data.tasks import Task
from seqtune.errors import ConfigError, did_you_mean
from seqtune.records import Prediction
from seqtune.scoring.evaluate import evaluate_task
from seqtune.scoring.metrics import METRICS
from seqtune.scoring.metrics.answers import answer_metrics
from seqtune.scoring.metrics.base import item_statistics, mean
from seqtune.scoring.significance import bootstrap_interval


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One task's score.

    Attributes:
        task: its name.
        cluster: tasks of one kind; "" without one.
        held_out: training did not see it.
        metric: which of the scores this is.
        value: the score, `None` if it is undefined on these rows.
        low: lower end of its 95% interval over items.
        high: upper end.
        num_items: rows that were asked.
    """

    task: str
    cluster: str
    held_out: bool
    metric: str
    value: float | None
    low: float | None
    high: float | None
    num_items: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dataclasses.asdict(self)


def check_metric(mixed: MixedTask) -> None:
    """Refuse a metric that the task will have no score by, before anything is trained for it.

    Raises:
        ConfigError: names those that there are.
    """
    task, metric = mixed.task, mixed.bundle.metric
    own = plugins.find("metrics", task.pack.metrics)().signatures if task.pack and task.pack.metrics else ()
    known = [*METRICS, *(answer_metrics(task.answers, ordered=task.ordered) if task.answers else ()), *own]
    if metric not in known:
        raise ConfigError(f"{mixed.name}: metric = {metric!r} is none of {', '.join(known)}{did_you_mean(metric, known)}")


def task_score(predictions: Sequence[Prediction], task: Task, metric: str) -> dict[str, Any]:
    """A task's score by the metric that stands for it; `None` if it is undefined on them."""
    found = evaluate_task(predictions, task)[0].get(metric, dict.fromkeys(("value", "low", "high")))
    return {"metric": metric, **{key: found[key] for key in ("value", "low", "high")}, "num_items": len(predictions)}


def score_of(mixed: MixedTask, predictions: Sequence[Prediction]) -> TaskScore:
    """A task's score on its own rows."""
    cluster, metric = mixed.bundle.cluster or "", mixed.bundle.metric
    return TaskScore(mixed.name, cluster, mixed.held_out, **task_score(predictions, mixed.task, metric))


def cluster_means(scores: Sequence[TaskScore]) -> list[dict[str, Any]]:
    """The unweighted mean over the tasks of each cluster, held-out and trained ones apart, and over all tasks.

    The interval is over tasks; a cluster of one task has none. A task without a cluster counts in the mean of all.
    """
    groups: dict[tuple[str, bool], list[float]] = {}
    for score in scores:
        if score.value is None:
            continue
        for name in filter(None, (score.cluster, "all")):
            groups.setdefault((name, score.held_out), []).append(score.value)
    rows = []
    for (name, held_out), values in sorted(
        groups.items(), key=lambda group: (not group[0][1], group[0][0] == "all", group[0][0])
    ):
        low, high = bootstrap_interval(mean, item_statistics(values)) if len(values) > 1 else (None, None)
        value = sum(values) / len(values)
        rows.append({"cluster": name, "held_out": held_out, "num_tasks": len(values), "value": value, "low": low, "high": high})
    return rows


def by_task(predictions: Sequence[Prediction], names: Sequence[str], tasks: Sequence[MixedTask]) -> dict[str, Any]:
    """Scores of the tasks that predictions belong to; the parts `tasks` and `clusters` of `metrics.json`.

    Args:
        predictions: with references.
        names: the task of each.
        tasks: what is known of each task.
    """
    scores = []
    for of in tasks:
        own = [p for p, name in zip(predictions, names, strict=True) if name == of.name]
        if own:
            scores.append(score_of(of, own))
    return {"tasks": [score.to_dict() for score in scores], "clusters": cluster_means(scores)}
