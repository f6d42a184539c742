"""What a training has logged, as it is read by tables, searches and pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def kept_validation(log: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The scores of the validation whose weights are kept, the first of the best; `None` without any.

    They are ranked as the training ranks them: by the first score that differs.

    Example:
        >>> kept_validation([{"validation": {"exact_match": 0.1}}, {"validation": {"exact_match": 0.3}}])
        {'exact_match': 0.3}
    """
    ranked = validations(log)
    return max(ranked, key=lambda v: [value for name, value in v.items() if name != "num_items"]) if ranked else None
