"""The page that fits a folder, written into it."""

from __future__ import annotations

from pathlib import Path

from seqtune import runs
from seqtune.errors import RunError, near_path
from seqtune.report.run_page import run_page
from seqtune.report.study_page import study_page


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's, an evaluation's or a study's folder.

    Raises:
        RunError: there is no such folder, or it holds neither scores nor a study's results.
    """
    if not folder.is_dir():
        raise RunError(f"there is no folder {str(folder)!r}{near_path(folder)}")
    if (folder / "summary.csv").exists():
        page = study_page(folder)
    elif (folder / "metrics.json").exists() and (folder / "predictions.jsonl").exists():
        page = run_page(folder)
    else:
        raise RunError(f"{str(folder)!r} holds no metrics.json and predictions.jsonl, and no summary.csv of a study")
    out = folder / "report.html"
    runs.write_text(out, page)
    return out
