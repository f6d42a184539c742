"""Greedy decoding of an exported ONNX model with numpy, onnxruntime and tokenizers: copied beside it, to be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Decoder:
    """An exported folder, ready to answer.

    Args:
        folder: holds model.onnx, tokenizer.json and generation_config.json.
        adds_start: the tokenizer puts its start token before a prompt.
    """

    def __init__(self, folder: str, adds_start: bool = True):
        path = Path(folder)
        self.tokenizer, self.adds_start = Tokenizer.from_file(str(path / "tokenizer.json")), adds_start
        self.session = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
        self.end = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        self.outputs = [output.name for output in self.session.get_outputs()]
        caches = [entry for entry in self.session.get_inputs() if entry.name.startswith("past_")]
        self.empty = {c.name: np.zeros((1, c.shape[1], 0, c.shape[3]), np.float32) for c in caches}

    def read(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""
        return self.tokenizer.encode(prompt, add_special_tokens=self.adds_start).ids

    def answer(self, prompt: str, limit: int) -> str:
        """The likeliest token after each other, until the end token or `limit` of them."""
        past, tokens, written = self.empty, self.read(prompt), []
        for _ in range(limit):
            found = dict(zip(self.outputs, self.session.run(None, {"input_ids": [tokens], **past}), strict=True))
            tokens = [int(np.asarray(found.pop("logits"))[0, -1].argmax())]
            if tokens[0] == self.end:
                break
            written += tokens
            past = {f"past_{name}": value for name, value in found.items()}
        return self.tokenizer.decode(written)
