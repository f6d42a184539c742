"""An adapter on its own, in peft's layout: small, and of use only with its base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from seqtune import plugins, runs
from seqtune.config import Config
from seqtune.errors import ConfigError
from seqtune.models.adapters import WEIGHTS
from seqtune.models.location import location

METHODS = ("lora", "ia3", "oft")  # those that peft itself can put back on a base and decode with
SETTINGS = "adapter_config.json"


def check(run: Path, config: Config, kept: Sequence[int] | None) -> None:
    """Refuse a run whose adapter is nothing to its base in its own vocabulary.

    Args:
        run: a run folder.
        config: its settings, with a base that may be loaded.
        kept: the base's tokens that the run kept, `None` for all.

    Raises:
        ConfigError: the run trained no such adapter, or one that holds rows of a vocabulary of its own.
    """
    if config.adapter.method not in METHODS:
        raise ConfigError(
            f"--to peft: adapter.method of this run is {config.adapter.method!r}; peft takes {', '.join(METHODS)}; use --to hf"
        )
    if kept is None:
        return
    with safe_open(run / "model" / WEIGHTS, "pt") as tensors:
        own = [name for name in tensors.keys() if len(kept) in tensors.get_slice(name).get_shape()]  # noqa: SIM118
    if own:
        raise ConfigError(
            "--to peft: the adapter has rows for the run's trimmed vocabulary, which its base does not have; use --to hf, or "
            "train with model.trim_vocabulary=false"
        )


def write(run: Path, folder: Path, config: Config, tokenizer: PreTrainedTokenizerBase, end: int) -> None:
    """Write the adapter with the base's whole tokenizer, and a greedy search.

    Args:
        run: a run folder.
        folder: where to write.
        config: its settings; the base is named as it is found here.
        tokenizer: the base's, with the run's format as its chat template.
        end: the token that ends an answer.
    """
    shutil.copy(run / "model" / WEIGHTS, folder / WEIGHTS)
    settings = runs.read_json(run / "model" / SETTINGS)
    runs.write_json(folder / SETTINGS, settings | {"base_model_name_or_path": location(config.model)})
    tokenizer.save_pretrained(folder)
    GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=end).save_pretrained(folder)


class Runtime:
    """peft on transformers, greedily.

    Args:
        folder: what `write` has written.
        adds_start: the tokenizer puts its start token before a prompt.
        trusted: the model may run its own code.
    """

    def __init__(self, folder: Path, adds_start: bool, trusted: bool):
        self.adds_start, self.search = adds_start, GenerationConfig.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        load = plugins.load("peft:AutoPeftModelForCausalLM").from_pretrained
        self.model = load(folder, dtype=torch.float32, trust_remote_code=trusted)

    @torch.inference_mode()
    def answers(self, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[tuple[str, int]]:
        """See `table.Runtime`."""
        for prompt, limit in zip(prompts, limits, strict=True):
            read = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=self.adds_start)
            length = read["input_ids"].shape[1]
            written = self.model.generate(**read, generation_config=self.search, max_new_tokens=limit)[0, length:]
            yield str(self.tokenizer.decode(written, skip_special_tokens=True)), length
