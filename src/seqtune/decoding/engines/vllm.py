"""vLLM: greedy search on GPUs for models that it serves."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqtune.decoding.engines.weights import resolved
from seqtune.errors import ConfigError, MissingDependencyError
from seqtune.records import Candidate
from seqtune.sections import DecodeConfig


def check(config: DecodeConfig) -> Any:
    """The package, if it is there and can do what is asked; else the errors of `VllmEngine`."""
    if not torch.cuda.is_available():
        raise ConfigError("decode.engine = 'vllm' needs a CUDA GPU, and there is none here; use 'native'")
    if config.num_beams > 1:
        raise ConfigError(f"decode.engine = 'vllm' decodes greedily; num_beams = {config.num_beams} needs 'native'")
    if config.weights == "int8":
        raise ConfigError("decode.weights = 'int8' needs decode.engine = 'native' or 'ctranslate2'; use 'bfloat16'")
    try:
        return importlib.import_module("vllm")
    except ImportError:
        raise MissingDependencyError("vllm", "vllm", "the engine 'vllm'") from None


class VllmEngine:
    """Decoding through vLLM, which loads the model's folder itself.

    Args:
        end: end token.
        config: the `decode` section.
        folder: the model's folder.

    Raises:
        ConfigError: there is no GPU or no folder, vLLM cannot serve the model, or more than greedy search is asked for.
        MissingDependencyError: vllm is not installed.
    """

    def __init__(self, end: int, config: DecodeConfig, folder: Path | None):
        self.package: Any = check(config)
        if folder is None:
            raise ConfigError("decode.engine = 'vllm' needs a run or model folder on disk")
        self.end = end
        try:
            # half of the memory is plenty for small models, and leaves room for one that was just trained here
            self.server = self.package.LLM(model=str(folder), dtype=resolved(config), gpu_memory_utilization=0.5)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"vllm cannot serve {str(folder)!r} ({reason}); use decode.engine = 'native'") from None

    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`."""
        settings = [
            self.package.SamplingParams(
                temperature=0.0,
                max_tokens=limit,
                stop_token_ids=[self.end],
                ignore_eos=True,  # no other end tokens, which a model folder may name
                logprobs=0,  # of the chosen tokens only; without it there is no score
                detokenize=False,
            )
            for limit in limits
        ]
        prompts = [{"prompt_token_ids": source.tolist()} for source in sources]
        for index, result in enumerate(self.server.generate(prompts, settings, use_tqdm=False)):
            found = result.outputs[0]
            yield index, [Candidate(list(found.token_ids), float(found.cumulative_logprob))]
