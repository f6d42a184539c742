"""Config -> run folder: prepare, train, keep the best weights, evaluate on held-out rows, write it all down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seqtune import folders, plugins, progress, runs
from seqtune.config import Config
from seqtune.decoding.engines import check_engine
from seqtune.decoding.predictor import Predictor, predict_with_progress
from seqtune.errors import RunError, VocabularyError
from seqtune.models import loading
from seqtune.models.vocabulary import extend_embeddings, trim_embeddings, trim_tokenizer
from seqtune.procedures.validation import Validator
from seqtune.report import card
from seqtune.scoring.evaluate import evaluate_task
from seqtune.tokens.encode import Encoder, make_encoder
from seqtune.tokens.preparation import Prepared, prepare
from seqtune.training import defaults
from seqtune.training.loop import Outcome, Trainer, outcome_summary
from seqtune.training.processes import check_trackers, process_state

NUM_COMPARED = 1000  # rows on which the trimmed tokenizer is compared with the whole one


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


def run_folder(config: Config) -> Path:
    """Where the run goes: `out`, or `runs/` and the data file's name."""
    return Path(config.out) if config.out else Path("runs") / Path(config.data.path or "run").name.split(".")[0]


def fit(config: Config, *, resume: bool = False, overwrite: bool = False, quiet: bool = False) -> Fitted:
    """Fine-tune as configured.

    Raises:
        SeqtuneError: anything a user can put right; bad input leaves nothing half-written behind.
    """
    folder = run_folder(config)
    process = process_state()
    quiet = quiet or not process.is_main_process
    if process.is_main_process:
        runs.check_free(config, folder, resume=resume, overwrite=overwrite)
    check_trackers(config.train)
    encoder = make_encoder(config)
    prepared = prepare(config, encoder)
    model, tokenizer, kept = starting_point(config, encoder, prepared, quiet)
    continuing = [False]
    if process.is_main_process:
        continuing = [runs.open_run(config, folder, prepared.fingerprint, resume=resume, overwrite=overwrite)]
    broadcast_object_list(continuing)
    if overwrite and process.is_main_process and (others := folders.foreign(folder, runs.RUN)):
        _say(f"{folder} holds files that seqtune did not write; they stay: {', '.join(others)}", quiet)
    if runs.is_complete(folder):
        _say(f"{folder} is complete already", quiet)
        metrics = folder / "metrics.json"
        return Fitted(folder, {"reason": "complete"}, runs.read_json(metrics) if metrics.exists() else None)
    if prepared.rejected:
        _say(f"{len(prepared.rejected)} of {prepared.num_rows} rows cannot be used: {folder}/rejected.jsonl", quiet)
    validate = Validator(tokenizer, prepared, config) if prepared.examples["validation"] else None
    num_parameters = sum(p.numel() for p in model.parameters())
    settings = defaults.for_adapter(config.train, config.adapter.method, num_parameters)
    if settings.target_tokens:
        epochs = settings.target_tokens / int(prepared.encoded.num_loss_tokens.sum())
        settings = settings.model_copy(update={"epochs": epochs})
    trainer = Trainer(model, prepared.encoded, settings, folder, validate)
    if trainer.is_main:
        _write_facts(folder, config, prepared, {"device": str(trainer.accelerator.device), "num_parameters": num_parameters})
        if kept is not None:
            runs.write_kept_tokens(folder, kept.tolist())
    _say(trainer.describe(), quiet)
    if continuing[0]:
        found = trainer.restore()
        step = trainer.state.step
        _say(f"resuming at step {step}" if found else "no checkpoint was written yet; starting over", quiet)
    outcome = trainer.run(quiet=quiet)
    if outcome.reason == "interrupted":
        raise RunError(
            f"interrupted at step {outcome.state.step} of {outcome.total_steps}; a checkpoint is written: "
            "the same command with --resume goes on from there"
        )
    trainer.load_best()
    metrics = None
    if trainer.is_main:
        metrics = _finish(trainer.model, tokenizer, prepared, config, outcome, quiet)
    return Fitted(folder, outcome_summary(outcome), metrics)


def starting_point(
    config: Config, encoder: Encoder, prepared: Prepared, quiet: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, np.ndarray | None]:
    """The model to train, its tokenizer, and the original id of each of its tokens if its vocabulary was trimmed.

    Where it is trimmed, the prepared rows are renumbered too. An adapter's run to begin with is merged first.
    """
    model = loading.load_trained(config.model, config.train.seed, merged=True)
    check_engine(model, config.decode)
    extend_embeddings(model, prepared.new_tokens)
    if prepared.new_tokens:
        _say(f"vocabulary: {len(prepared.new_tokens):,} frequent pieces of the training texts are added", quiet)
    tokenizer, kept = encoder.tokenizer, None
    full = config.adapter.method == "full"
    if full if config.model.trim_vocabulary is None else config.model.trim_vocabulary:
        tokenizer, kept = _trim(model, tokenizer, prepared, quiet)
    if not full:  # by name, because importing peft takes seconds
        text = config.adapter.init_text
        torch.manual_seed(config.train.seed)
        plugins.load("seqtune.models.adapters:attach")(model, config.adapter, encoder.ids([text])[0] if text else None)
    return model, tokenizer, kept


def _trim(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, quiet: bool
) -> tuple[PreTrainedTokenizerBase, np.ndarray | None]:
    """Drop the tokens that the task does without from model, tokenizer and rows; a tokenizer that resists stays whole."""
    texts = [text for p in prepared.prompts[:NUM_COMPARED] for text in (p.source, p.target or "")]
    try:
        trimmed = trim_tokenizer(tokenizer, prepared.encoded.used_ids().tolist(), texts)
    except VocabularyError as error:
        _say(f"the vocabulary stays whole: {error}", quiet)
        return tokenizer, None
    _say(f"vocabulary: {len(trimmed.kept):,} of {model.config.get_text_config().vocab_size:,} tokens are kept", quiet)
    trim_embeddings(model, trimmed.kept)
    prepared.encoded = prepared.encoded.renumbered(trimmed.kept)
    return trimmed.tokenizer, trimmed.kept


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        progress.console().print(text)


def _write_facts(folder: Path, config: Config, prepared: Prepared, facts: dict[str, Any]) -> None:
    runs.write_text(folder / "config.yaml", config.to_yaml())
    runs.write_json(folder / "environment.json", runs.environment(config.train.seed) | facts)
    runs.write_json(folder / "data.json", prepared.report())
    runs.write_rejected(folder / "rejected.jsonl", prepared.rejected)
    prepared.task.save(folder / "task.yaml")


def _finish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    config: Config,
    outcome: Outcome,
    quiet: bool,
) -> dict[str, Any] | None:
    folder = run_folder(config)
    if config.adapter.method == "full":
        loading.save_model(model, tokenizer, folder / "model")
    else:
        plugins.load("seqtune.models.adapters:save")(model, config.adapter, folder / "model")
        model.config.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    metrics = None
    if prepared.examples["test"]:
        predictor = Predictor(model, tokenizer, prepared.task, config.decode, folder / "model")
        predictions = predict_with_progress(predictor, prepared.examples["test"], "evaluate", quiet)
        metrics, predictions = evaluate_task(predictions, prepared.task, prepared.examples["train"])
        runs.write_predictions(folder / "predictions.jsonl", predictions)
        runs.write_json(folder / "metrics.json", metrics)
    runs.write_text(folder / "README.md", card.model_card(config, prepared.report(), outcome_summary(outcome), metrics))
    runs.finish(folder)
    return metrics
