"""A run's or a study's folder -> one HTML file that a person can read anywhere: no network, no torch, little script."""

from __future__ import annotations

from pathlib import Path

from seqtune.errors import RunError
from seqtune.report.answers import difference
from seqtune.report.run_page import run_page
from seqtune.report.study_page import examples_for, study_page

__all__ = ["difference", "examples_for", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's, an evaluation's or a study's folder.

    Raises:
        RunError: the folder holds neither scores nor a study's results.
    """
    if (folder / "summary.csv").exists():
        page = study_page(folder)
    elif (folder / "metrics.json").exists() and (folder / "predictions.jsonl").exists():
        page = run_page(folder)
    else:
        raise RunError(f"{str(folder)!r} holds no metrics.json and predictions.jsonl, and no summary.csv of a study")
    out = folder / "report.html"
    out.write_text(page, encoding="utf-8")
    return out
