"""seqtune: from a small pretrained language model and a table of pairs to a measured specialist."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqtune.learner import SequenceLearner, compare, evaluate, fit, predict

__version__ = "1.0.0rc1"
__all__ = ["SequenceLearner", "__version__", "compare", "evaluate", "fit", "predict"]


def __getattr__(name: str) -> Any:
    # torch loads with the learner, not with the package
    if name in __all__:
        return getattr(importlib.import_module("seqtune.learner"), name)
    raise AttributeError(f"module 'seqtune' has no attribute {name!r}")
