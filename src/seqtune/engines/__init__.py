"""Decoding engines behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from seqtune import progress
from seqtune.config import DecodeConfig
from seqtune.engines.ct2 import CTranslate2Engine
from seqtune.engines.native import NativeEngine, fits
from seqtune.engines.quantized import quantized
from seqtune.engines.reference import TransformersEngine
from seqtune.engines.vllm import VllmEngine
from seqtune.errors import ConfigError
from seqtune.records import Candidate


class Engine(Protocol):
    """Turns encoded prompts into token hypotheses."""

    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """Decode, in whatever order and batches suit the engine.

        Args:
            sources: prompt token ids, each [T].
            limits: the most tokens per hypothesis, the end token included.

        Yields:
            Index of a source and its `num_return` hypotheses, best first.
        """
        ...


def make_engine(model: PreTrainedModel, end: int, config: DecodeConfig, folder: Path | None = None) -> Engine:
    """The engine that `decode.engine` names; `auto` is the native one wherever it is exact, else transformers.

    Args:
        model: in evaluation mode.
        end: end token.
        config: the `decode` section.
        folder: where the model lies, for engines that load it themselves.

    Raises:
        ConfigError: the engine cannot serve this model.
        MissingDependencyError: it is not installed.
    """
    if config.engine == "ctranslate2":
        return CTranslate2Engine(model, end, config, folder)
    if config.engine == "vllm":
        return VllmEngine(model, end, config, folder)
    if config.engine != "transformers" and fits(model):
        return NativeEngine(quantized(model) if config.weights == "int8" else model, end, config)
    if config.engine == "native":
        raise ConfigError(
            f"decode.engine = 'native' does not fit {type(model).__name__}: its cached and its plain forward differ; "
            "use 'transformers', or 'auto', which chooses"
        )
    if config.weights == "int8":
        raise ConfigError("decode.weights = 'int8' needs decode.engine = 'native' or 'ctranslate2'")
    if config.engine == "auto":
        progress.console().print(
            f"[dim]decoding through transformers: the native engine does not fit {type(model).__name__}[/dim]"
        )
    return TransformersEngine(model, end, config)
