"""Config -> run folder: prepare, train, keep the best weights, evaluate on held-out rows, write it all down."""

from __future__ import annotations

import html
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from seqtune import folders, progress, runs
from seqtune.config import Config
from seqtune.data.columns import with_columns
from seqtune.data.mixture import bundles_of
from seqtune.decoding.engines import check_engine
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.predictor import Predictor
from seqtune.errors import InterruptedRunError
from seqtune.models.adapters import Adapter, load_merged
from seqtune.models.location import origin
from seqtune.models.loss import check_packing
from seqtune.procedures.evaluate import answer_and_score, answer_and_score_tasks, check_packages
from seqtune.procedures.findings import findings, refuse_errors
from seqtune.procedures.handover import hand_over
from seqtune.procedures.validation import Validator
from seqtune.report import card
from seqtune.report.notebook import Scores
from seqtune.report.page import write_report
from seqtune.scoring.by_task import check_metric
from seqtune.sections import TrainConfig
from seqtune.tokens.preparation import Prepared, prepare
from seqtune.tokens.shares import lines
from seqtune.training import defaults
from seqtune.training.checkpoints import Outcome, outcome_summary
from seqtune.training.loop import Trainer
from seqtune.training.processes import Agreement, check_trackers, process_state


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished fit.

    Attributes:
        folder: the run folder.
        outcome: how the training ended (`seqtune.training.loop.outcome_summary`).
        metrics: scores on the test rows, `None` without any.
    """

    folder: Path
    outcome: dict[str, Any]
    metrics: dict[str, Any] | None

    def _repr_html_(self) -> str:
        """In a notebook: the scores, and where the run is."""
        scores = Scores(self.metrics)._repr_html_() if self.metrics else "<p>there were no test rows</p>"
        return f"{scores}<p>run folder: <code>{html.escape(str(self.folder))}</code></p>"


@dataclass(frozen=True, slots=True)
class Start:
    """What a training begins with: the model, the adapter on it, and whether a run is continued or was replaced."""

    model: PreTrainedModel
    adapter: Adapter | None
    continuing: bool
    overwrite: bool


def run_folder(config: Config) -> Path:
    """Where the run goes: `out`, or `runs/` and the data file's name."""
    made_from = config.data.path or ("mixture" if config.mixture else "run")
    return Path(config.out) if config.out else Path("runs") / Path(made_from).name.split(".")[0]


def fit(config: Config, *, resume: bool = False, overwrite: bool = False, quiet: bool = False, report: bool = False) -> Fitted:
    """Fine-tune as configured.

    Args:
        config: all settings.
        resume: go on with a run that was begun.
        overwrite: replace a run that is there.
        quiet: show nothing.
        report: write the page, too.

    Raises:
        SeqtuneError: anything a user can put right; bad input leaves nothing half-written behind.
    """
    folder = run_folder(config)
    process = process_state()
    agreement = Agreement(process.num_processes)
    quiet = quiet or not process.is_main_process
    say = _speaker(quiet)

    def check_folder() -> None:
        runs.check_free(config, folder, resume=resume, overwrite=overwrite)
        if overwrite and config.mixture:
            runs.check_outside(folder, [name for bundle in bundles_of(config.mixture) for name in bundle.files])

    def enter() -> bool:
        """Hold the run folder; true if there is a run to continue."""
        runs.check_free(config, folder, resume=resume, overwrite=overwrite)
        folders.create(folder, runs.RUN)
        held.enter_context(folders.held(folder, runs.RUN))
        return runs.open_run(config, folder, prepared.fingerprint, resume=resume, overwrite=overwrite)

    with agreement.reachable(), ExitStack() as held:
        agreement.in_main(check_folder)
        agreement.everywhere(lambda: check_trackers(config.train))
        config, notes = agreement.everywhere(lambda: with_columns(config))
        for note in notes:
            say(note)
        prepared = agreement.everywhere(lambda: prepare(config), first=process.is_local_main_process)
        model, adapter = agreement.everywhere(lambda: starting_point(config, prepared))
        for line in account(prepared):
            say(line)
        agreement.in_main(lambda: _say_what_is_odd(prepared, folder, say))
        continuing = agreement.in_main(enter)
        return _train_in(folder, config, prepared, Start(model, adapter, continuing, overwrite), quiet, report)


def _train_in(folder: Path, config: Config, prepared: Prepared, start: Start, quiet: bool, report: bool) -> Fitted:
    """Train and write everything down, in a folder that is this process's own."""
    process, say = process_state(), _speaker(quiet)
    if start.overwrite and process.is_main_process and (others := folders.foreign(folder, runs.RUN)):
        say(f"{folder} holds files that seqtune did not write; they stay: {', '.join(others)}")
    if runs.is_complete(folder):
        say(f"{folder} is complete already")
        metrics = folder / "metrics.json"
        outcome = runs.read_json(folder / "outcome.json")
        return Fitted(folder, outcome, runs.read_json(metrics) if metrics.exists() else None)
    trainer = _trainer(config, prepared, start.model, folder)
    outcome = _train(trainer, continuing=start.continuing, quiet=quiet)
    metrics = None
    if trainer.is_main:
        metrics = _finish(trainer, start.adapter, prepared, config, outcome, quiet)
        if report and metrics:
            write_report(folder)
        runs.finish(folder)
    return Fitted(folder, outcome_summary(outcome), metrics)


def starting_point(config: Config, prepared: Prepared) -> tuple[PreTrainedModel, Adapter | None]:
    """The model to train, in the vocabulary that the rows were prepared in, and the adapter that is on it, if one is trained.

    If the base is itself the run of an adapter, that adapter is merged first.
    """
    check_packages(prepared.task, config.decode)
    for mixed in prepared.mixture:
        check_metric(mixed)
    model = load_merged(config.model, config.train.seed)
    prepared.vocabulary.apply(model)
    adapter = None
    if config.adapter.method != "full":
        text = config.adapter.init_text
        torch.manual_seed(config.train.seed)
        adapter = Adapter.attach(model, config.adapter, prepared.encoder.ids([text])[0] if text else None)
    check_engine(FrozenModel(model), config.decode, config.adapter.method)
    check_packing(model, config.train.batching)
    return model, adapter


def training_settings(config: Config, prepared: Prepared, num_parameters: int) -> TrainConfig:
    """The `train` section with what the adapter's method and the table's size decide."""
    settings = defaults.for_adapter(config.train, config.adapter.method, num_parameters)
    if settings.target_tokens:
        epochs = settings.target_tokens / int(prepared.encoded.num_loss_tokens.sum())
        settings = settings.model_copy(update={"epochs": epochs})
    return settings


def account(prepared: Prepared) -> list[str]:
    """The rows and where they went, and what was decided about them."""
    sides = ", ".join(f"{len(rows):,} {side}" for side, rows in prepared.examples.items())
    left_out = "".join(f", {count:,} {what} left out" for what, count in prepared.left_out.items())
    rejected = f", {len(prepared.rejected):,} rejected" if prepared.rejected else ""
    return [
        f"{prepared.num_rows:,} rows: {sides}{left_out}{rejected}",
        *prepared.notes,
        *(lines(prepared.shares) if prepared.mixture else ()),
    ]


def _say_what_is_odd(prepared: Prepared, folder: Path, say: Callable[[str], None]) -> None:
    """The findings of `check` that a person should know before the training.

    Raises:
        DataError: they make it senseless.
    """
    found = findings(prepared)
    for finding in found:
        if finding.level == "warning":
            say(f"warning: {finding.text}")
    refuse_errors(found)
    if prepared.rejected:
        say(f"all {len(prepared.rejected):,} rejected rows with their reasons: {folder}/rejected.jsonl")


def _speaker(quiet: bool) -> Callable[[str], None]:
    return (lambda text: None) if quiet else lambda text: progress.console().print(text, markup=False)


def _trainer(config: Config, prepared: Prepared, model: PreTrainedModel, folder: Path) -> Trainer:
    """The trainer, with the facts of the run written down before the first step."""
    num_parameters = sum(p.numel() for p in model.parameters())
    validate = Validator(prepared, config) if prepared.examples["validation"] else None
    trainer = Trainer(model, prepared.encoded, training_settings(config, prepared, num_parameters), folder, validate)
    if trainer.is_main:
        runs.write_text(folder / "config.yaml", config.to_yaml())
        facts = {"device": str(trainer.accelerator.device), "num_parameters": num_parameters}
        runs.write_json(folder / "environment.json", runs.environment(config.train.seed) | facts)
        runs.write_json(folder / "data.json", prepared.report())
        runs.write_rejected(folder / "rejected.jsonl", prepared.rejected)
        prepared.task.save(folder / "task.yaml")
        if prepared.vocabulary.kept is not None:
            runs.write_kept_tokens(folder, prepared.vocabulary.kept.tolist())
    return trainer


def _train(trainer: Trainer, *, continuing: bool, quiet: bool) -> Outcome:
    """Train to the end, from a checkpoint if there is one, and put the best weights back.

    Raises:
        InterruptedRunError: a signal came; a checkpoint is written.
    """
    say = _speaker(quiet)
    say(trainer.describe())
    if continuing:
        found = trainer.restore()
        say(f"resuming at step {trainer.state.step}" if found else "no checkpoint was written yet; starting over")
    outcome = trainer.run(quiet=quiet)
    if outcome.reason == "interrupted":
        raise InterruptedRunError(
            f"interrupted at step {outcome.state.step} of {outcome.total_steps}; a checkpoint is written: "
            "the same command with --resume goes on from there",
            outcome.signal,
        )
    trainer.load_best()
    return outcome


def _finish(
    trainer: Trainer, adapter: Adapter | None, prepared: Prepared, config: Config, outcome: Outcome, quiet: bool
) -> dict[str, Any] | None:
    """Save the model; answer the test rows with what was saved, as `predict` would; write the card."""
    folder = run_folder(config)
    with folders.writing(folder / "model", folders.aside(folder / "model")) as hidden:
        if adapter is None:
            hand_over(trainer.model, prepared.encoder, prepared.task, config.decode, hidden)
        else:
            adapter.save(hidden)
            trainer.model.config.save_pretrained(hidden)
            prepared.encoder.tokenizer.save_pretrained(hidden)
    ended = outcome_summary(outcome)
    runs.write_json(folder / "outcome.json", ended)
    metrics = None
    if prepared.examples["test"]:
        predictor = Predictor.of_run(str(folder), trusted=config.model.trusted_with(folder))
        rows, train = prepared.examples["test"], prepared.examples["train"]
        if prepared.mixture:
            metrics = answer_and_score_tasks(predictor, prepared.mixture, rows, folder, quiet=quiet)
        else:
            metrics = answer_and_score(predictor, rows, train, folder, quiet=quiet)
    text = card.model_card(
        config, prepared.report(), ended, metrics, origin(config.model),
        takes_messages=prepared.encoder.tokenizer.chat_template is not None,
    )  # fmt: skip
    runs.write_text(folder / "README.md", text)
    return metrics
