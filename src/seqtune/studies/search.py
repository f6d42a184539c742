"""A search for settings by Optuna: tree-structured Parzen estimators and median pruning, on the validation rows alone.

The journal beside the results holds every trial, so a search that was killed goes on, with the points that were running.
Source: https://optuna.readthedocs.io.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from seqtune import progress, runs
from seqtune.errors import ConfigError, RunError, SeqtuneError
from seqtune.studies.execution import Executor, Failure, Task, describe_failure, stop_all
from seqtune.studies.naming import digest
from seqtune.studies.points import SEARCH, Point, Range, Search, Study, has_validation, trial_point
from seqtune.studies.processes import POLL_SECONDS, Stopped
from seqtune.training.log import kept_validation, read_log, validations

JOURNAL = "search.journal"
RUN = "run"  # what a trial's run is called: it says which data, base and version the trial was begun with


@dataclass(slots=True)
class _Running:
    trial: Trial
    point: Point
    task: Task
    reported: int = 0
    pruned: bool = False


def search(study: Study, executor: Executor, tick: progress.Tick) -> list[Failure]:
    """Run trials until there are as many as the study asks for; returns those that failed.

    Raises:
        ConfigError: there are no validation rows, or the journal belongs to another search.
        RunError: another process runs this search.
    """
    assert study.search is not None
    with (Path(study.out) / "search.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is running the search in {study.out!r}") from None
        return _search(study, study.search, executor, tick)


def _search(study: Study, settings: Search, executor: Executor, tick: progress.Tick) -> list[Failure]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = _open(study, settings)
    failures: list[Failure] = []
    active: list[_Running] = []
    left_over = [Trial(journal, t._trial_id) for t in journal.get_trials(states=(TrialState.RUNNING,))]
    try:
        while True:
            while len(active) < executor.width and (left_over or len(journal.trials) < settings.trials):
                trial = left_over.pop() if left_over else journal.ask()
                started = _start(study, settings, trial, executor)
                if isinstance(started, _Running):
                    active.append(started)
                else:
                    journal.tell(trial.number, state=TrialState.FAIL)
                    failures.append(started)
            if not active:
                break
            time.sleep(POLL_SECONDS)
            for running in active:
                _watch(running, settings)
            for running in [r for r in active if r.task.done()]:
                active.remove(running)
                failures += _finish(journal, running, settings)
                _write(journal, study)
                tick(sum(t.state.is_finished() for t in journal.trials), _best_so_far(journal, settings))
    except BaseException:
        stop_all([r.task for r in active])
        raise
    _write(journal, study)
    return failures


def _open(study: Study, settings: Search) -> optuna.Study:
    path = Path(study.out) / JOURNAL
    startup = max(3, settings.trials // 4)
    journal = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=study.name,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=startup) if settings.pruning else optuna.pruners.NopPruner(),
    )
    # a generator of its own after each restart, or it would propose the first points again
    journal.sampler = optuna.samplers.TPESampler(seed=study.seeds[0] + len(journal.trials), n_startup_trials=startup)
    belongs = {k: v for k, v in study.model_dump().items() if k in ("base", "budget", "seeds")}
    belongs |= {"space": study.model_dump()["search"]["space"], "metric": settings.metric}
    mark = digest(belongs)
    if journal.user_attrs.setdefault("settings", mark) != mark:
        raise ConfigError(f"the search in {study.out!r} was begun with other settings; choose another `out`, or delete {path}")
    journal.set_user_attr("settings", mark)
    for trial in journal.get_trials(states=(TrialState.COMPLETE, TrialState.RUNNING)):
        if trial.state == TrialState.RUNNING and RUN not in trial.user_attrs:
            continue  # killed before it had a run
        if trial.user_attrs.get(RUN) != trial_point(study, trial.params).run.name:
            raise ConfigError(
                f"the search in {study.out!r} was begun with other data, another base or another version of seqtune; choose "
                f"another `out`, or delete {path}"
            )
    return journal


def _start(study: Study, settings: Search, trial: Trial, executor: Executor) -> _Running | Failure:
    values = {name: _suggest(trial, name, space) for name, space in settings.space.items()}
    try:
        point = trial_point(study, values)
    except SeqtuneError as error:  # settings that do not go together
        return {"point": json.dumps(values), "error": str(error)}
    if not has_validation(point.config):
        raise ConfigError("a search goes by the validation rows, and data.split.validation is 0; give it a share, such as 0.05")
    trial.set_user_attr(RUN, point.run.name)
    return _Running(trial, point, executor.submit([point]), len(_intermediate(trial)))


def _intermediate(trial: Trial) -> dict[int, float]:
    return trial.storage.get_trial(trial._trial_id).intermediate_values


def _suggest(trial: Trial, name: str, space: Range | Sequence[Any]) -> Any:
    if not isinstance(space, Range):
        return trial.suggest_categorical(name, space)
    if isinstance(space.low, int) and isinstance(space.high, int):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    return trial.suggest_float(name, space.low, space.high, log=space.log)


def _watch(running: _Running, settings: Search) -> None:
    """Hand new validations to the pruner, and stop what it gives up."""
    if running.pruned:
        return
    scores = validations(read_log(running.point.run))
    for step, found in list(enumerate(scores, start=1))[running.reported :]:
        running.trial.report(found[settings.metric], step)
        running.reported = step
        if running.trial.should_prune() and not running.task.done():
            running.pruned = True
            running.task.stop()
            return


def _finish(journal: optuna.Study, running: _Running, settings: Search) -> list[Failure]:
    kept = kept_validation(read_log(running.point.run))
    number = running.trial.number
    try:
        failures = running.task.result()
    except RunError as error:  # a machine of the cluster was lost
        failures = [describe_failure(running.point, error)]
    except Stopped:
        if not running.pruned:
            raise
        journal.tell(number, state=TrialState.PRUNED)  # its last validation is its value
        return []
    if failures:
        journal.tell(number, state=TrialState.FAIL)
        return failures
    if kept is None:
        raise RunError(f"a search goes by validations, and {str(running.point.run)!r} wrote none; lower train.validate_every")
    journal.tell(number, kept[settings.metric])
    return []


def _best_so_far(journal: optuna.Study, settings: Search) -> str:
    complete = journal.get_trials(states=(TrialState.COMPLETE,))
    return f"best validation {settings.metric} {journal.best_value:.4f}" if complete else ""


def _write(journal: optuna.Study, study: Study) -> None:
    """What the search found, for the tables and the report."""
    assert study.search is not None
    complete = journal.get_trials(states=(TrialState.COMPLETE,))
    enough = len(complete) > 3 and len({t.value for t in complete}) > 1
    content = {
        "metric": study.search.metric,
        "trials": [_row(trial) for trial in journal.trials if trial.state.is_finished()],
        "best": _row(journal.best_trial) if complete else None,
        "importances": optuna.importance.get_param_importances(journal) if enough else {},
    }
    runs.write_json(Path(study.out) / SEARCH, content)


def _row(trial: FrozenTrial) -> dict[str, Any]:
    return {"number": trial.number, "state": trial.state.name.lower(), "validation": trial.value, "values": trial.params}
