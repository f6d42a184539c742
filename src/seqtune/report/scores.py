"""How scores are written, on pages, on cards and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# what a prediction's status means where it is not plainly an answer, and what can be done about it
STATUSES = {
    "unfinished": "cut off before the model ended its answer: train it longer, or allow more with decode.max_new_tokens",
    "empty": "the input was empty, so nothing was asked",
    "too_long": "the input takes more tokens than the model reads",
    "invalid_text": "the input holds something that is no text",
    "unverified": "no hypothesis passed the verifier; more may with more beams",
    "not_checked": "the verifier could not be asked",
    "abstained": "no hypothesis passed the verifier, so no answer was given",
}


def explained(status: str) -> str:
    """A prediction's status with its meaning.

    Example:
        >>> explained("empty")
        'empty (the input was empty, so nothing was asked)'
    """
    return f"{status} ({STATUSES[status]})" if status in STATUSES else status


def scores_of(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores among the content of a `metrics.json`: those with a signature, the text metrics and the task's own."""
    return {name: value for name, value in metrics.items() if isinstance(value, dict) and "signature" in value}


def interval(score: dict[str, Any]) -> str:
    """A value and its 95% interval.

    Example:
        >>> interval({"value": 0.5, "low": 0.25, "high": 0.75})
        '0.500 (0.250 to 0.750)'
    """
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def rows_table(heading: str, rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table with a line for each row: its label, its number of items and its scores.

    Args:
        heading: over the labels.
        rows: each with `label`, `num_items` and scores by name; a score may be missing.
    """
    names = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, dict)))
    headings = [heading, "items", *(name.replace("_", " ") for name in names)]
    scores = [[interval(row[name]) if name in row else "-" for name in names] for row in rows]
    return headings, [[row["label"], f"{row['num_items']:,}", *cells] for row, cells in zip(rows, scores, strict=True)]
