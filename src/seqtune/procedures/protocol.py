"""The protocol of a mixture: every task's test rows, zero- and few-shot, asked of a run and of what it is compared with.

What it is compared with: its base, other runs or models, and trainings on one task alone for as many steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from seqtune import folders, progress, runs
from seqtune.config import Config, load_config, validate
from seqtune.data.asking import COLUMNS, MixedTask
from seqtune.data.mixture import asked_rows, open_mixture, plain_frame
from seqtune.data.table import Columns, Frames, Table
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor, decode_settings, is_run, predict_with_progress, task_of
from seqtune.errors import ConfigError, RunError
from seqtune.models.location import check_there
from seqtune.procedures.evaluate import EVALUATION, check_writable, framed
from seqtune.procedures.fit import fit
from seqtune.records import Prediction
from seqtune.scoring.by_task import TaskScore, check_metric, cluster_means, score_of
from seqtune.sections import ModelConfig
from seqtune.training.log import read_log

BASE, SINGLE = "base", "single task"


@dataclass(frozen=True, slots=True)
class Protocol:
    """What to ask, and of whom.

    Attributes:
        mixture: its YAML file.
        shots: numbers of solved examples.
        against: models beside the run: `base`, runs, models.
        singles: folder for trainings on one task alone; `None` for none.
        settings: dotted keys that differ from the mixture's file.
        trusted: models whose own Python code may run, by name.
    """

    mixture: str
    shots: tuple[int, ...] = (0,)
    against: tuple[str, ...] = ()
    singles: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    trusted: tuple[str, ...] = ()


def score_tasks(run: str, protocol: Protocol, out: Path | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Scores of every task, and the unweighted means of clusters.

    Args:
        run: run folder, model folder or hub id.
        protocol: what to ask, and of whom.
        out: folder for `metrics.json` and `predictions.jsonl`.
        quiet: show no progress.

    Returns:
        `scores`: model -> shots -> `tasks` and `clusters`, as `seqtune.scoring.by_task` makes them; and `models`, their names.

    Raises:
        SeqtuneError: a model or a table is missing or does not fit.
    """
    if out:
        check_writable(out)
    models = {run: run} | {name: _base(run) if name == BASE else name for name in protocol.against}
    for model in models.values():
        check_there(ModelConfig(name=model))
    frame = _framing(run)
    framing = {f"format.{key}": getattr(frame, key) for key in ("template", "separator", "system")}
    config = load_config(None, {"mixture": protocol.mixture, **dict(protocol.settings), **framing})
    assert config.mixture is not None
    tasks = open_mixture(config.mixture, [])
    for task in tasks:
        check_metric(task)
    questions = {(task.name, k): _questions(task, config, k) for task in tasks for k in protocol.shots}
    session = _Session(protocol, frame, questions, [], quiet)
    found = {label: session.scores(label, model, tasks) for label, model in models.items()}
    if protocol.singles:
        found[SINGLE] = {k: [] for k in protocol.shots}
        for task in tasks:
            own = session.scores(SINGLE, _single(run, task.name, protocol.singles, quiet=quiet), [task])
            for k in protocol.shots:
                found[SINGLE][k] += own[k]
    scores = {
        label: {str(k): {"tasks": [s.to_dict() for s in of], "clusters": cluster_means(of)} for k, of in by_shots.items()}
        for label, by_shots in found.items()
    }
    result = {"models": models, "shots": list(protocol.shots), "scores": scores}
    if out:
        folders.create(out, EVALUATION)
        runs.write_predictions(out / runs.PREDICTIONS, session.found)
        runs.write_json(out / "metrics.json", result)
    return result


def _base(run: str) -> str:
    if not is_run(run):
        raise ConfigError(f"--against base: {run!r} is no run, so it has no base; name the model itself")
    return load_config(Path(run) / "config.yaml").model.name


def _framing(run: str) -> Task:
    """The frame of a run's prompts without its own words: what all models are asked in."""
    own = task_of(run)
    template = "chat" if own.template == "chat" else "plain"
    return Task("input", "output", template, "{output}", own.separator, own.max_new_tokens, system=own.system)


def _questions(task: MixedTask, config: Config, num_shots: int) -> Table:
    """A task's test rows as plain questions."""
    assert config.mixture is not None
    rows, faults = asked_rows(task, "test", config.mixture.test_examples), []
    frame = plain_frame(task, rows, config, num_shots, 0, faults) if len(rows) else polars.DataFrame()
    if not len(frame):
        why = f"; first: {faults[0][1]}" if faults else "; see its data.split"
        raise ConfigError(f"{task.name}: no test row can be asked{why}")
    if faults:
        said = f"{task.name}: {len(faults)} of {len(rows)} test rows cannot be asked and do not count; first: {faults[0][1]}"
        progress.console().print(f"warning: {said}", style="yellow", markup=False)
    return Table(Frames([len(frame)], [frame]), Columns(task.name, COLUMNS))


@dataclass(frozen=True, slots=True)
class _Session:
    """The questions of all tasks, and the answers so far."""

    protocol: Protocol
    framing: Task
    questions: dict[tuple[str, int], Table]
    found: list[Prediction]
    quiet: bool

    def scores(self, label: str, model: str, tasks: Sequence[MixedTask]) -> dict[int, list[TaskScore]]:
        """A model's scores on some tasks, by number of shots."""
        predictor = Predictor.of_model(model, self.framing, decode_settings(model, {}), self.protocol.trusted)
        return {k: [self._score(predictor, label, task, k) for task in tasks] for k in self.protocol.shots}

    def _score(self, predictor: Predictor, label: str, task: MixedTask, num_shots: int) -> TaskScore:
        asked = list(self.questions[task.name, num_shots])
        title = f"{label}: {task.name}, {num_shots} solved examples"
        answers = predict_with_progress(predictor.asking(framed(self.framing, task, asked)), asked, title, self.quiet)
        note = {"task": task.name, "shots": str(num_shots), "model": label}
        named = (
            dataclasses.replace(p, id=f"{label}/{task.name}/{num_shots}/{p.id}", details={**p.details, **note}) for p in answers
        )
        self.found.extend(named)
        return score_of(task, answers)


def _single(run: str, task: str, folder: Path, *, quiet: bool) -> str:
    """Train on one task alone, otherwise as the run was, and for as many steps; a training that is there is kept."""
    if not runs.is_complete(Path(run)):
        raise RunError(f"--singles: {run!r} is no finished run, so it is not known for how many steps to train")
    settings = load_config(Path(run) / "config.yaml").model_dump()
    if settings["mixture"] is None:
        raise ConfigError(f"--singles: {run!r} was not trained on a mixture")
    settings["mixture"] |= {"only": [task], "held_out": [], "weights": {}}
    settings["train"] |= {"max_steps": int(read_log(Path(run))[-1]["step"]), "epochs": 1000.0, "target_tokens": None}
    out = folder / task.replace("/", "-")
    config = validate(Config, settings | {"out": str(out)})
    fit(config, resume=out.exists(), quiet=quiet)
    return str(out)
