"""What a training has logged, as tables, searches and pages read it; torch is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`; none without the file. A line that is just being written does not count."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as log:
        return [json.loads(line) for line in log if line.endswith("\n")]


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
