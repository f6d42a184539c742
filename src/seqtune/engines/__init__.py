"""Decoding engines behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from seqtune.config import DecodeConfig
from seqtune.engines.reference import TransformersEngine


class Engine(Protocol):
    """Turns encoded prompts into token hypotheses."""

    def generate(self, sources: list[np.ndarray], max_new_tokens: int) -> list[list[list[int]]]:
        """Decode one batch.

        Args:
            sources: prompt token ids, each [T].
            max_new_tokens: limit per hypothesis, the end token included.

        Returns:
            Per source, `num_return` hypotheses, best first: target ids up to and including the end token.
        """
        ...


ENGINES: dict[str, Callable[[PreTrainedModel, int, DecodeConfig], Engine]] = {"transformers": TransformersEngine}


def make_engine(model: PreTrainedModel, end: int, config: DecodeConfig) -> Engine:
    """The engine that `decode.engine` names; `auto` is the fastest that fits."""
    return ENGINES["transformers" if config.engine == "auto" else config.engine](model, end, config)
