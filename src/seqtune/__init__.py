"""seqtune: from a small pretrained language model and a table of pairs to a measured specialist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqtune.learner import SequenceLearner

__version__ = "0.1.0"
__all__ = ["SequenceLearner", "__version__"]


def __getattr__(name: str) -> Any:
    # torch loads with the learner, not with the package
    if name == "SequenceLearner":
        from seqtune.learner import SequenceLearner

        return SequenceLearner
    raise AttributeError(f"module 'seqtune' has no attribute {name!r}")
