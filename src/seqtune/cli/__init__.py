"""The command line: one small file a verb; each imports its procedure only when it runs."""

from __future__ import annotations

import sys

from seqtune.cli.app import app, run_app

# importing a verb's file registers it; none of them imports torch
from seqtune.cli import check, compare, data, demo, doctor, evaluate, export, fit, predict, pretrain, report, score, study  # isort: skip

__all__ = [
    "app",
    "check",
    "compare",
    "data",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "fit",
    "main",
    "predict",
    "pretrain",
    "report",
    "score",
    "study",
]


def main() -> None:
    """Entry point of the `seqtune` command."""
    sys.exit(run_app(sys.argv[1:]))
