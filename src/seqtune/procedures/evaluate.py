"""Ask a run the questions of a table, score the answers, and write both down; the last part of `fit` and all of `evaluate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqtune import folders, plugins, runs
from seqtune.data.asking import MixedTask
from seqtune.data.places import is_saved
from seqtune.data.sources import check_rejected_share, read_examples
from seqtune.data.splits import subset
from seqtune.data.table import FIELD, Table, texts
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor, predict_with_progress, task_of
from seqtune.decoding.verification import make_verifier
from seqtune.errors import MissingDependencyError, RunError, SeqtuneError
from seqtune.models.location import check_there
from seqtune.records import Example, Prediction, Rejected
from seqtune.scoring.by_task import by_task
from seqtune.scoring.evaluate import evaluate_task, read_predictions
from seqtune.sections import DataConfig, DecodeConfig, ModelConfig
from seqtune.tokens.preparation import training_rows, within_limits

EVALUATION = folders.Kind(
    name="evaluation",
    marker=".seqtune-evaluation",
    artefacts=("metrics.json", runs.PREDICTIONS, "rejected.jsonl", "task.yaml", "report.html"),
    remedy="choose another --out",
)


@dataclass(frozen=True, slots=True)
class Questions:
    """What to ask, and how.

    Attributes:
        data: a table, or a folder (or `predictions.jsonl`) whose rows are asked again, with the columns that they came with.
        input: input column; `None` for the task's.
        output: column of the references, likewise.
        settings: how the table is read, and how many rows count.
        decode: settings that differ from the run's own, such as `{"num_beams": 5}`.
        task: a pack's task whose metrics and verifier to use instead of the run's.
        baselines: score the tools that a task compares with, too.
        trusted: models whose own Python code may run, by name.
    """

    data: str
    input: str | None = None
    output: str | None = None
    settings: DataConfig = field(default_factory=DataConfig)
    decode: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    baselines: bool = True
    trusted: tuple[str, ...] = ()


def evaluate(run: str, questions: Questions, out: Path | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Predict a table's inputs and score them against its outputs.

    All that can be missing is looked for before the first answer, and the answers are on disk before they are scored.

    Args:
        run: run folder, model folder or hub id.
        questions: the table and what differs from the run's own settings.
        out: folder for `predictions.jsonl`, `metrics.json`, `rejected.jsonl` and `task.yaml`.
        quiet: show no progress.

    Returns:
        The content of `metrics.json`.

    Raises:
        RunError: `out` is a run's folder, or holds files of these names that seqtune did not write.
        SeqtuneError: the run, the table or a package that the task needs is missing or does not fit.
    """
    if out:
        check_writable(out)
    check_there(ModelConfig(name=run))
    task = task_of(run, questions.task)
    examples, rejected = _read(questions, task)
    has_metrics = task.pack is not None and task.pack.metrics is not None
    training = training_rows(Path(run)) if questions.baselines and has_metrics else None
    predictor = Predictor.of_run(run, questions.decode, questions.task, questions.trusted)
    check_packages(task, predictor.decode)
    if out:
        folders.create(out, EVALUATION)
        runs.write_rejected(out / "rejected.jsonl", rejected)
        task.save(out / "task.yaml")
    return answer_and_score(predictor, examples, training, out, quiet=quiet)


def check_writable(out: Path) -> None:
    """Refuse a folder in which the evaluation would replace what is not its own."""
    if folders.is_ours(out, runs.RUN):
        raise RunError(
            f"{str(out)!r} is a run's folder, and its own scores lie in it; choose another --out, such as {out / 'other'}"
        )
    if not folders.is_ours(out, EVALUATION) and (there := folders.artefacts(out, EVALUATION)):
        raise RunError(
            f"{str(out)!r} holds {', '.join(p.name for p in there)}, and no {EVALUATION.marker} that would say that seqtune "
            "wrote it; choose another --out"
        )


def _read(questions: Questions, task: Task) -> tuple[Sequence[Example], list[Rejected]]:
    """The rows to ask, a nested sample of them if a number is given."""
    settings = questions.settings
    rejected: list[Rejected] = []
    path = Path(questions.data)
    if (path.is_dir() and not is_saved(path)) or path.name == runs.PREDICTIONS:
        stored = read_predictions(questions.data)
        examples = [Example(p.id, p.input, p.reference, {**p.fields, task.input: p.input}, context=p.context) for p in stored]
    else:
        columns = {"input": questions.input or task.input, "output": questions.output or task.output}
        settings = dataclasses.replace(task, **columns).reading(settings)
        examples, rejected = read_examples(questions.data, settings)
        check_rejected_share(rejected, len(examples) + len(rejected), settings.max_rejected)
    task.rendering.check_columns(list(examples[0].fields), with_target=False)
    return subset(within_limits(examples, settings), settings.num_examples, settings.split.seed), rejected


def check_packages(task: Task, decode: DecodeConfig) -> None:
    """Load what the task's pack will be asked for after training or decoding, so that its absence shows before.

    Raises:
        MissingDependencyError: a package is not installed.
        ConfigError: the pack is not installed, or `decode.verify` is set and it has no verifier.
    """
    make_verifier(task, decode)
    if task.pack is None or task.pack.metrics is None:
        return
    metrics = plugins.find("metrics", task.pack.metrics)()
    try:
        _ = metrics.signatures  # names the versions of all that it uses
    except MissingDependencyError:
        raise
    except SeqtuneError:  # something that scores are given without, such as Java; said when it is missed
        return


def answer_and_score(
    predictor: Predictor,
    examples: Sequence[Example],
    training: Sequence[Example] | None,
    folder: Path | None,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Predict and score; in `folder` the answers lie before they are scored.

    Args:
        predictor: of the run.
        examples: rows with references.
        training: rows for the baselines; empty if they are unknown, `None` for no baselines.
        folder: for `predictions.jsonl` and `metrics.json`.
        quiet: show no progress.
    """
    predictions = predict_with_progress(predictor, list(examples), "evaluate", quiet)
    if folder:
        runs.write_predictions(folder / runs.PREDICTIONS, predictions)
    metrics, predictions = evaluate_task(predictions, predictor.task, training)
    if folder:
        runs.write_predictions(folder / runs.PREDICTIONS, predictions)
        runs.write_json(folder / "metrics.json", metrics)
    return metrics


def framed(framing: Task, task: MixedTask, asked: Sequence[Example]) -> Task:
    """A task of a mixture in the frame of a run: its answers are chosen among, unless a template puts words around them.

    Args:
        framing: the run's task.
        task: of the mixture.
        asked: its finished questions.
    """
    own = task.task
    return dataclasses.replace(
        framing,
        answers=own.answers if own.answers and all(e.output in own.answers for e in asked) else None,
        ordered=own.ordered, plugin=own.plugin, max_new_tokens=own.max_new_tokens or framing.max_new_tokens,
    )  # fmt: skip


def answer_and_score_tasks(
    predictor: Predictor, tasks: Sequence[MixedTask], rows: Table, folder: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """`answer_and_score` for the test rows of a mixture, which lie task by task; with the scores of each task.

    Args:
        predictor: of the run.
        tasks: of the mixture.
        rows: finished questions.
        folder: for `predictions.jsonl` and `metrics.json`.
        quiet: show no progress.
    """
    names, examples = list(texts(rows, FIELD + "task")), list(rows)
    predictions: list[Prediction] = []
    for task in tasks:
        asked = [example for example, name in zip(examples, names, strict=True) if name == task.name]
        if asked:
            asking = predictor.asking(framed(predictor.task, task, asked))
            predictions += predict_with_progress(asking, asked, f"evaluate {task.name}", quiet)
    runs.write_predictions(folder / runs.PREDICTIONS, predictions)
    metrics, predictions = evaluate_task(predictions, predictor.task)
    metrics |= by_task(predictions, names, tasks)
    runs.write_json(folder / "metrics.json", metrics)
    return metrics
