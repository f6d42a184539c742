"""Inputs -> predictions, through an engine, returned in the order given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seqtune import models, progress
from seqtune.config import DecodeConfig, ModelConfig
from seqtune.encode import Encoder
from seqtune.engines import make_engine
from seqtune.errors import RunError, SupervisionError
from seqtune.machine import best_device, has_bf16_units
from seqtune.records import Candidate, Example, Hypothesis, Prediction
from seqtune.tasks import Task

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_NEW_TOKENS = 128  # for a model that was not trained here and so knows no target length


class Predictor:
    """A model, its tokenizer and its task, ready to answer.

    Args:
        model: a causal LM; moved nowhere, switched to evaluation.
        tokenizer: its tokenizer.
        task: columns and template.
        decode: search settings.
        folder: where the model lies, for engines that load it themselves.

    Example:
        predictor = Predictor.load(Path("runs/names"))
        predictor.predict([Example("1", "CCO", None)])[0].prediction
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        decode: DecodeConfig,
        folder: Path | None = None,
    ):
        self.model = model
        self.task = task
        self.decode = decode
        self.max_length = models.max_length(model.config, ModelConfig())
        self.encoder = Encoder(tokenizer, self.max_length, model.config.vocab_size)
        self.template = task.rendering
        self.engine = make_engine(model.eval(), self.encoder.end, decode, folder)

    @classmethod
    def load(cls, run: str, decode: DecodeConfig) -> Predictor:
        """Load a run folder, or any model folder or hub id (then with the plain template).

        Raises:
            RunError: the folder is a run that has no model yet.
            ModelError: the model cannot be loaded.
        """
        folder = Path(run)
        if (folder / "config.yaml").exists() and not (folder / "model").exists():
            raise RunError(f"{run!r} has no model yet; finish the training with `seqtune fit ... --resume`")
        task_file = folder / "task.yaml"
        task = Task.load(task_file) if task_file.exists() else Task("input", "output", "plain", "{output}", "\n")
        source = ModelConfig(name=run)
        device = best_device()
        dtype = DTYPES.get(decode.weights, torch.float32)
        if decode.weights == "auto" and device.type == "cuda" and has_bf16_units():
            dtype = torch.bfloat16
        model = models.load_model(source, seed=0).to(device, dtype)  # type: ignore[arg-type, call-arg]
        return cls(model, models.load_tokenizer(source), task, decode, models.local_folder(source))

    @property
    def max_new_tokens(self) -> int:
        """Decoding limit: the setting, else what training saw, else a default."""
        return self.decode.max_new_tokens or self.task.max_new_tokens or DEFAULT_NEW_TOKENS

    def predict(self, examples: Sequence[Example], tick: progress.Tick = progress.silent) -> list[Prediction]:
        """Predict every example, in the order given.

        An input that is `empty` or `too_long` gets that status and an empty prediction; a best hypothesis that did
        not end within the limit gets `unfinished`.

        Args:
            examples: rows; their outputs are kept as references and never shown to the model.
            tick: told how many are done.
        """
        self.model.eval()
        found: dict[int, Prediction] = {}
        sources: dict[int, np.ndarray] = {}
        for index, ids in enumerate(self._encode(examples)):
            if not examples[index].input.strip():
                found[index] = _unanswered(examples[index], "empty")
            elif isinstance(ids, SupervisionError):
                found[index] = _unanswered(examples[index], "too_long")
            else:
                sources[index] = ids
        order = list(sources)
        if order:
            limits = [min(self.max_new_tokens, self.max_length - len(sources[i])) for i in order]
            for position, candidates in self.engine.generate([sources[i] for i in order], limits):
                index = order[position]
                found[index] = self._prediction(examples[index], candidates)
                tick(len(found))
        return [found[i] for i in sorted(found)]

    def _encode(self, examples: Sequence[Example]) -> list[np.ndarray | SupervisionError]:
        prompts = [self.template.render(dataclasses.replace(e, output=None)) for e in examples]
        return self.encoder.encode_sources([p.source for p in prompts]) if prompts else []

    def _prediction(self, example: Example, candidates: list[Candidate]) -> Prediction:
        hypotheses = tuple(
            Hypothesis(self.task.answer(self.encoder.decode(c.ids)), c.score, len(c.ids), c.ids[-1:] == [self.encoder.end])
            for c in candidates
        )
        best = hypotheses[0]
        status = "ok" if best.finished else "unfinished"
        return Prediction(example.id, example.input, example.output, best.text, best.score, hypotheses, status)


def _unanswered(example: Example, status: str) -> Prediction:
    return Prediction(example.id, example.input, example.output, "", 0.0, (), status)
