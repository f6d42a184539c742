"""mlx: mlx-lm reads the Hugging Face layout of its families; asked there, on a processor too where there is no Apple chip."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seqtune import plugins
from seqtune.procedures.formats import to_huggingface


def write(source: Path, folder: Path, weights: str, adds_start: bool) -> None:
    """Write a Hugging Face folder whose `config.json` also has the older names of settings, which mlx-lm goes by.

    Without them it would take its own defaults for some, such as the base of the rotary angles, and compute something else.
    """
    to_huggingface.write(source, folder, weights, adds_start)
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(_older_names(settings) | settings, indent=2) + "\n", encoding="utf-8")


def _older_names(settings: dict[str, Any]) -> dict[str, Any]:
    rope = settings.get("rope_parameters") or {}
    if "rope_theta" not in rope:
        return {}
    found = {"rope_theta": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return found


class Runtime:
    """mlx-lm: Apple's chips; elsewhere `pip install 'mlx[cpu]'`.

    Args:
        folder: a Hugging Face folder.
        adds_start: the tokenizer puts its start token before a prompt.
    """

    def __init__(self, folder: Path, adds_start: bool):
        self.adds_start = adds_start
        self.model, self.tokenizer = plugins.load("mlx_lm:load")(str(folder))
        self.generate = plugins.load("mlx_lm:generate")

    def answers(self, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[tuple[str, int]]:
        """See `table.Runtime`."""
        for prompt, limit in zip(prompts, limits, strict=True):
            read = self.tokenizer.encode(prompt, add_special_tokens=self.adds_start)
            yield self.generate(self.model, self.tokenizer, read, max_tokens=limit), len(read)
