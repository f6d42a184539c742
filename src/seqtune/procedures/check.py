"""What would be trained on, for people to look at: examples, lengths, findings and a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np

from seqtune import plugins
from seqtune.procedures.findings import findings
from seqtune.records import Encoded
from seqtune.tokens.encode import Encoder
from seqtune.tokens.preparation import Prepared
from seqtune.tokens.shares import lines

NUM_SHOWN = 3
NUM_BINS = 10
PART_OF_CHARACTER = "\ufffd"  # what bytes are decoded to that make no whole character yet


def statistics(prepared: Prepared) -> dict[str, Any]:
    """Lengths, fertility and unknown tokens of the training rows."""
    encoded = prepared.encoded
    characters = words = 0
    for prompt in prepared.prompts:
        text = "".join(prompt.texts)
        characters, words = characters + len(text), words + len(text.split())
    unknown = prepared.encoder.tokenizer.unk_token_id
    num_tokens = int(encoded.lengths.sum(dtype=np.int64))
    return {
        "tokens_per_row": _quantiles(encoded.lengths),
        "loss_tokens_per_row": _quantiles(encoded.num_loss_tokens),
        "tokens_per_character": round(num_tokens / max(1, characters), 4),
        "tokens_per_word": round(num_tokens / max(1, words), 4),
        "unknown_tokens": 0 if unknown is None else sum(int((row.input_ids == unknown).sum()) for row in encoded),
        "vocabulary_used": len(encoded.used),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    names = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: float(np.quantile(values, q)) for name, q in names.items()}


def tokens(row: Encoded, encoder: Encoder) -> list[tuple[str, bool]]:
    """Each token's text and whether it carries loss; texts join to the whole, blanks included.

    Tokens that hold a part of a character each are shown as one.
    """
    pieces = []
    shown = ""
    for index in range(len(row.input_ids)):
        # a token's text depends on what stands before it (word starts, split UTF-8 characters)
        ids = row.input_ids[: index + 1].tolist()
        text = str(encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if text.endswith(PART_OF_CHARACTER) and index + 1 not in (row.loss_start, len(row.input_ids)):
            continue
        pieces.append((text[len(shown) :], index >= row.loss_start))
        shown = text
    return pieces


def neighbours(prepared: Prepared) -> dict[str, Any] | None:
    """How similar held-out rows are to their nearest training row, if the task's pack can tell."""
    pack = prepared.task.pack
    held_out = prepared.examples["test"] or prepared.examples["validation"]
    if pack is None or pack.neighbours is None or not held_out:
        return None
    found = plugins.load(pack.neighbours)(prepared.examples["train"], held_out)
    if not found:
        return None
    counts, edges = np.histogram(found, bins=NUM_BINS, range=(0.0, 1.0))
    return {
        "num_rows": len(found),
        "median": float(np.median(found)),
        "edges": [round(float(e), 2) for e in edges],
        "counts": counts.tolist(),
    }


def report(prepared: Prepared) -> dict[str, Any]:
    """Everything `check` shows, as plain values for `--json`."""
    shown = []
    for row in prepared.encoded[:NUM_SHOWN]:
        shown.append([{"token": text, "loss": loss} for text, loss in tokens(row, prepared.encoder)])
    return {
        "data": prepared.report(),
        "notes": prepared.notes,
        "mixture": lines(prepared.shares) if prepared.mixture else [],
        "statistics": statistics(prepared),
        "findings": [{"level": f.level, "text": f.text} for f in findings(prepared)],
        "neighbours": neighbours(prepared),
        "examples": shown,
    }
