"""The command line: one small file a verb, which reads flags, calls its procedure and prints what came out.

In come arguments. Out come lines or JSON on stdout, messages on stderr and an exit code: 0 done, 1 bad input, 2 usage, and
128 + the number of the signal that ended it (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP). Each verb imports its procedure only when it
runs, so `--help` answers at once.
"""

from __future__ import annotations

import sys

# importing a verb's file registers it; none of them imports torch
from seqtune.cli import (  # noqa: F401
    bases,
    benchmark,
    check,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    fit,
    predict,
    pretrain,
    push,
    report,
    score,
    serve,
    study,
    tasks,
    verify,
)  # isort: skip  # fmt: skip
from seqtune.cli.app import leave_in_order, run_app

__all__ = ["main"]


def main() -> None:
    """Entry point of the `seqtune` command."""
    leave_in_order()
    sys.exit(run_app(sys.argv[1:]))
