"""vLLM: greedy and beam search on GPUs for models that it serves."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from seqtune.config import DecodeConfig
from seqtune.errors import ConfigError, MissingDependencyError
from seqtune.records import Candidate


def check(config: DecodeConfig) -> Any:
    """The package, if it is there and can do what is asked; else the errors of `VllmEngine`."""
    if not torch.cuda.is_available():
        raise ConfigError("decode.engine = 'vllm' needs a CUDA GPU, and there is none here; use 'native'")
    if config.num_beams > 1:
        raise ConfigError(f"decode.engine = 'vllm' decodes greedily; num_beams = {config.num_beams} needs 'native'")
    try:
        return importlib.import_module("vllm")
    except ImportError:
        raise MissingDependencyError("vllm", "vllm", "the engine 'vllm'") from None


class VllmEngine:
    """Decoding through vLLM, which loads the model's folder itself.

    Raises:
        ConfigError: there is no GPU, no folder, or more than greedy search is asked for.
        MissingDependencyError: vllm is not installed.
    """

    def __init__(self, model: PreTrainedModel, end: int, config: DecodeConfig, folder: Path | None):
        self.package: Any = check(config)
        if folder is None:
            raise ConfigError("decode.engine = 'vllm' needs a run or model folder on disk")
        self.end = end
        self.server = self.package.LLM(model=str(folder), tokenizer=str(folder), gpu_memory_utilization=0.5)

    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`."""
        settings = [
            self.package.SamplingParams(temperature=0.0, max_tokens=limit, stop_token_ids=[self.end], detokenize=False)
            for limit in limits
        ]
        prompts = [{"prompt_token_ids": source.tolist()} for source in sources]
        for index, result in enumerate(self.server.generate(prompts, settings)):
            found = result.outputs[0]
            yield index, [Candidate(list(found.token_ids), float(found.cumulative_logprob))]
