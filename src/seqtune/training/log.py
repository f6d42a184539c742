"""What a training has logged, as tables, searches and pages read it; torch is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqtune import runs


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`; none without the file. A line that is just being written does not count.

    Raises:
        RunError: a line is not one that a training writes.
    """
    path = run / "log.jsonl"
    if not path.exists():
        return []
    with path.open("rb") as log:
        return [_read(path, number, line) for number, line in enumerate(log, start=1) if line.endswith(b"\n")]


def _read(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise runs.damaged(path, f"line {number}: {error}") from None
    validation = line.get("validation", {"exact_match": 0.0}) if isinstance(line, dict) else None
    if not isinstance(validation, dict):
        raise runs.damaged(path, f"line {number}: no line of a training")
    values = [value for part in (line, validation) for key, value in part.items() if key != "validation"]
    needed = {"step", "seconds", *(("num_tokens",) if "loss" in line else ())}
    if not needed <= line.keys() or "exact_match" not in validation or not all(isinstance(v, int | float) for v in values):
        raise runs.damaged(path, f"line {number}: no line of a training")
    return line


def validations(log: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The scores of each validation, in order."""
    return [line["validation"] for line in log if "validation" in line]


def rank(validation: Mapping[str, float]) -> tuple[float, ...]:
    """What validations are compared by, the larger the better: their scores, the first one that differs decides.

    Example:
        >>> rank({"exact_match": 0.3, "edit_similarity": 0.8, "num_items": 200})
        (0.3, 0.8)
    """
    return tuple(value for name, value in validation.items() if name != "num_items")


def kept_validation(log: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The scores of the validation whose weights are kept, the first of the best; `None` without any.

    Example:
        >>> kept_validation([{"validation": {"exact_match": 0.1}}, {"validation": {"exact_match": 0.3}}])
        {'exact_match': 0.3}
    """
    return max(validations(log), key=rank, default=None)
