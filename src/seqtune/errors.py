"""The exceptions: whatever goes wrong by a user's mistake is a `SeqtuneError` whose text says what to do.

    SeqtuneError
    ├── ConfigError         a setting is unknown, out of range or contradicts another one
    ├── DataError           a table cannot be read or holds too little that can be used
    │   ├── RejectedRowsError   too many of its rows cannot be used
    │   └── SupervisionError    it is in doubt which tokens of a row carry loss
    │       └── TooLongError    a row takes more tokens than the model reads
    ├── ModelError          a model or tokenizer cannot be loaded or does not fit the task
    │   └── VocabularyError     a tokenizer cannot be trimmed
    ├── RunError            a folder that is to be written or read is missing, incomplete, damaged or in use for something else
    │   ├── InterruptedRunError     a signal came; what was done is written down, and the same command goes on
    │   └── LostProcessError        another process of the same training has ended
    └── MissingDependencyError  a package is needed; the text says how to install it

Mistakes of this package itself are found by `assert` statements, never reported by these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqtune.records import Rejected


class SeqtuneError(Exception):
    """Something that the user can put right; `str(error)` tells how."""


class ConfigError(SeqtuneError):
    """A setting is unknown, out of range or contradicts another one."""


class DataError(SeqtuneError):
    """A table cannot be read, or holds too little that can be used."""


class RejectedRowsError(DataError):
    """Too many rows of a table cannot be used.

    Args:
        text: how many, the first, and what to do.
        rejected: all of them.
    """

    def __init__(self, text: str, rejected: Sequence[Rejected]):
        super().__init__(text)
        self.rejected = rejected


class SupervisionError(DataError):
    """It is in doubt which tokens of a row carry loss, so the row is not trained on."""


class TooLongError(SupervisionError):
    """A row takes more tokens than the model reads."""


class ModelError(SeqtuneError):
    """A model or tokenizer cannot be loaded or does not fit the task."""


class VocabularyError(ModelError):
    """A tokenizer cannot be trimmed; it is then kept whole."""


class RunError(SeqtuneError):
    """A folder that is to be written or read is missing, incomplete, damaged or in use for something else."""


class InterruptedRunError(RunError):
    """A signal came; what was done is written down, and the same command goes on from there.

    Args:
        text: what happened, and how it goes on.
        signal: the number of the signal, which decides the exit code: 128 + number, as shells, Slurm and Kubernetes expect it.
    """

    def __init__(self, text: str, signal: int):
        super().__init__(text)
        self.signal = signal


class LostProcessError(RunError):
    """Another process of the same training has ended, or is out of reach."""


class MissingDependencyError(SeqtuneError):
    """A package is needed that is not installed.

    Args:
        package: its name.
        extra: the extra of seqtune that brings it; `None` for a package that every installation should have.
        purpose: what needs it.

    Example:
        >>> str(MissingDependencyError("chemicals", "chem", "the demo's molecules"))
        "the demo's molecules needs the package 'chemicals': pip install 'seqtune[chem]'"
    """

    def __init__(self, package: str, extra: str | None, purpose: str):
        wanted = f"'seqtune[{extra}]'" if extra else package
        super().__init__(f"{purpose} needs the package {package!r}: pip install {wanted}")


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """A hint that names the most similar allowed word; "" if none is similar.

    Example:
        >>> did_you_mean("epoch", ["epochs", "seed"])
        "; did you mean 'epochs'?"
    """
    near = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def near_path(path: Path) -> str:
    """A hint that names what lies beside a missing file or folder under a similar name; "" if nothing does.

    Example:
        `near_path(Path("runs/nmaes"))` is "; did you mean 'runs/names'?" where there is a folder runs/names.
    """
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
