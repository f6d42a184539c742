"""ONNX with a key/value cache, one step a call, exported by torch's own exporter; asked in onnxruntime.

Inputs are `input_ids` [1, T] and, for each layer, `past_key_i` and `past_value_i` [1, heads, P, width]; outputs `logits`
[1, 1, V] of the last token, `key_i` and `value_i` [1, heads, P + T, width], which are the next call's past.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from seqtune.procedures.formats import decode
from seqtune.procedures.formats.to_huggingface import copy_beside

FILE = "model.onnx"
SAMPLE = (3, 5)  # tokens read and tokens in the cache of the step that is traced; any sizes that are not 0 or 1


class Step(torch.nn.Module):
    """One call of a model with its cache as plain tensors."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Logits of the last token, and keys and values of all tokens, layer after layer."""
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        mask = torch.ones(1, past[0].shape[2] + input_ids.shape[1], dtype=torch.long)
        out = self.model(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        present = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (out.logits[:, -1:], *present)


def write(source: Path, folder: Path, weights: str, adds_start: bool) -> None:
    """Write `model.onnx`, the tokenizer, and `decode.py`, which asks them without seqtune."""
    del weights, adds_start
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    ).eval()
    num_read, num_past = SAMPLE
    ids = torch.ones(1, num_read, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(1, num_past, dtype=torch.long), use_cache=True).past_key_values
    past = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    names = [f"{kind}_{layer}" for layer in range(len(past) // 2) for kind in ("key", "value")]
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            Step(model).eval(), (ids, past), folder / FILE, dynamo=True, verbose=False, external_data=True,
            input_names=["input_ids", *(f"past_{name}" for name in names)], output_names=["logits", *names],
            dynamic_shapes=({1: torch.export.Dim("read")}, [{2: torch.export.Dim("past")} for _ in past]),
        )  # fmt: skip
    copy_beside(source, folder)
    shutil.copy(decode.__file__, folder / "decode.py")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch says of itself while it exports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Runtime:
    """onnxruntime, through the decoding example that goes with the model.

    Args:
        folder: what `write` has written.
        adds_start: the tokenizer puts its start token before a prompt.
    """

    def __init__(self, folder: Path, adds_start: bool):
        self.decoder = decode.Decoder(str(folder), adds_start)

    def answers(self, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[tuple[str, int]]:
        """See `table.Runtime`."""
        for prompt, limit in zip(prompts, limits, strict=True):
            yield self.decoder.answer(prompt, limit), len(self.decoder.read(prompt))
