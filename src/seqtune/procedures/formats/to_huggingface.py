"""A standard Hugging Face folder, asked through transformers' own `generate`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# what a runtime needs beside the weights, of the files in a Hugging Face folder
BESIDE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def write(source: Path, folder: Path, weights: str, adds_start: bool) -> None:
    """The folder as it is; its files are moved."""
    del weights, adds_start
    for path in sorted(source.iterdir()):
        shutil.move(path, folder / path.name)


def copy_beside(source: Path, folder: Path) -> None:
    """Copy the tokenizer and the search, for a format whose weights are elsewhere."""
    for name in BESIDE:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)


class Runtime:
    """transformers, with the search that the folder's `generation_config.json` says.

    Args:
        folder: a Hugging Face folder.
        adds_start: the tokenizer puts its start token before a prompt.
        trusted: the model may run its own code.
    """

    def __init__(self, folder: Path, adds_start: bool, trusted: bool):
        self.adds_start = adds_start
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trusted}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)

    @torch.inference_mode()
    def answers(self, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[tuple[str, int]]:
        """See `table.Runtime`."""
        for prompt, limit in zip(prompts, limits, strict=True):
            read = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=self.adds_start)
            length = read["input_ids"].shape[1]
            written = self.model.generate(**read, max_new_tokens=limit)[0, length:]
            yield str(self.tokenizer.decode(written, skip_special_tokens=True)), length
