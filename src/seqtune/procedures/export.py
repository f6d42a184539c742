"""A run's model as a folder of its own, in the vocabulary it was trained with or in its base's; then replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from seqtune import folders
from seqtune.config import Config, ModelConfig, load_config
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor, predict_with_progress
from seqtune.errors import RunError, near_path
from seqtune.models import loading
from seqtune.models.adapters import load_merged
from seqtune.models.location import base_of
from seqtune.models.vocabulary import extend_embeddings, restore_embeddings
from seqtune.procedures.handover import hand_over
from seqtune.records import Example
from seqtune.runs import is_complete, read_kept_tokens
from seqtune.scoring.evaluate import read_predictions
from seqtune.tokens.encode import Encoder


def export(
    run: Path, folder: Path, *, full_vocabulary: bool = False, num_verified: int = 0, trusted: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a standard Hugging Face folder.

    Args:
        run: a finished run folder.
        folder: where to write.
        full_vocabulary: put a trimmed model's rows back into its base's vocabulary; all other rows are the base's.
        num_verified: predict this many of the run's stored test inputs again with what was written.
        trusted: models whose own Python code may run, by name; what the run's folder says about that does not count.

    Returns:
        `num_tokens` of the vocabulary, and `num_verified` with `num_different` predictions among them.

    Raises:
        RunError: the run is not finished, or the folder is in the way.
    """
    if not run.is_dir():
        raise RunError(f"there is no folder {str(run)!r}{near_path(run)}")
    if not is_complete(run):
        raise RunError(f"{str(run)!r} is no finished run; finish it with `seqtune fit ... --resume`")
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{str(folder)!r} exists and is not empty; choose another --out")
    config = load_config(run / "config.yaml")
    source, task = ModelConfig(name=str(run), trust_remote_code=tuple(trusted)), Task.load(run / "task.yaml")
    model, tokenizer = load_merged(source, config.train.seed), loading.load_tokenizer(source)
    kept = read_kept_tokens(run)
    if full_vocabulary and kept is not None:
        model, tokenizer = _whole(base_of(run, trusted), model, tokenizer, np.array(kept))
    size = int(model.config.get_text_config().vocab_size)
    encoder = Encoder(tokenizer, loading.max_length(model.config, source), size, roles=task.rendering.roles)
    with folders.writing(folder) as hidden:
        hand_over(model, encoder, task, config.decode, hidden)
    facts = {"num_tokens": size}
    return facts | (_replay(run, folder, task, num_verified, source.trusted_with(folder)) if num_verified else {})


def _whole(
    config: Config, trained: PreTrainedModel, trimmed: PreTrainedTokenizerBase, kept: np.ndarray
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    base, tokenizer = load_merged(config.model, config.train.seed), loading.load_tokenizer(config.model)
    added = np.flatnonzero(kept >= len(tokenizer))
    pieces: Any = trimmed.convert_ids_to_tokens(added.tolist())
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    extend_embeddings(base, {int(kept[i]): [0] for i in added})
    restore_embeddings(base, trained, kept)
    return base, tokenizer


def _replay(run: Path, folder: Path, task: Task, count: int, trusted: Sequence[str]) -> dict[str, int]:
    stored = run / "predictions.jsonl"
    if not stored.exists():
        raise RunError(f"{str(run)!r} holds no predictions to verify with; its split had no test rows")
    before = read_predictions(str(stored))[:count]
    predictor = Predictor.of_model(str(folder), task, load_config(run / "config.yaml").decode, trusted)
    after = predict_with_progress(
        predictor, [Example(p.id, p.input, None, p.fields, context=p.context) for p in before], "verify"
    )
    different = sum(a.prediction != b.prediction for a, b in zip(after, before, strict=True))
    return {"num_verified": len(before), "num_different": different}
