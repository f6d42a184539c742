"""CTranslate2's own folder, with the tokenizer beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
from tokenizers import Tokenizer
from transformers import GenerationConfig

from seqtune.decoding.engines.ct2 import convert
from seqtune.procedures.formats.to_huggingface import copy_beside


def write(source: Path, folder: Path, weights: str, adds_start: bool) -> None:
    """Write the converted model, the tokenizer and the search."""
    del adds_start
    end: Any = GenerationConfig.from_pretrained(source).eos_token_id
    name: Any = Tokenizer.from_file(str(source / "tokenizer.json")).id_to_token(end)
    convert(source, folder, weights, name)
    copy_beside(source, folder)  # last: the converter empties the folder


class Runtime:
    """CTranslate2 on the processor, with the run's beams.

    Args:
        folder: what `write` has written.
        adds_start: the tokenizer puts its start token before a prompt.
    """

    def __init__(self, folder: Path, adds_start: bool):
        self.adds_start = adds_start
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.generator: Any = ctranslate2.Generator(str(folder), device="cpu")
        self.search: Any = GenerationConfig.from_pretrained(folder)

    def answers(self, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[tuple[str, int]]:
        """See `table.Runtime`."""
        for prompt, limit in zip(prompts, limits, strict=True):
            read = self.tokenizer.encode(prompt, add_special_tokens=self.adds_start).tokens
            found = self.generator.generate_batch(
                [read], max_length=limit, beam_size=self.search.num_beams or 1, sampling_topk=1,
                length_penalty=self.search.length_penalty or 1.0, end_token=[self.search.eos_token_id],
                include_prompt_in_result=False,
            )  # fmt: skip
            yield self.tokenizer.decode(found[0].sequences_ids[0]), len(read)
