"""Inputs -> predictions, through an engine, returned in the order given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seqtune import plugins, progress
from seqtune.config import DecodeConfig, ModelConfig
from seqtune.data.tasks import Task
from seqtune.decoding import verification
from seqtune.decoding.engines import make_engine
from seqtune.errors import ConfigError, MissingDependencyError, RunError, SupervisionError
from seqtune.models import loading
from seqtune.models.location import local_folder
from seqtune.models.machine import best_device, has_bf16_units
from seqtune.models.soft_prompts import num_virtual_tokens
from seqtune.records import Candidate, Example, Hypothesis, Prediction
from seqtune.tokens.encode import Encoder

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
        self.max_length = loading.max_length(model.config, ModelConfig())
        virtual = num_virtual_tokens(model)
        self.encoder = Encoder(tokenizer, self.max_length, model.config.vocab_size, num_virtual=virtual)
        self.template = task.rendering
        self.verifier, self.inspect = _verifier(task, decode), _inspector(task)
        searched = decode.model_copy(update={"num_return": decode.num_beams}) if decode.verify else decode
        self.engine = make_engine(model.eval(), self.encoder.end, searched, folder)

    @classmethod
    def load(cls, run: str, decode: DecodeConfig, plugin: str | None = None) -> Predictor:
        """Load a run folder, or any model folder or hub id (then with the plain template).

        Args:
            run: folder or hub id.
            decode: search settings.
            plugin: a pack's task whose verifier, metrics and inspection to use instead of the run's own.

        Raises:
            RunError: the folder is a run that has no model yet.
            ModelError: the model cannot be loaded.
        """
        folder = Path(run)
        if (folder / "config.yaml").exists() and not (folder / "model").exists():
            raise RunError(f"{run!r} has no model yet; finish the training with `seqtune fit ... --resume`")
        task_file = folder / "task.yaml"
        task = Task.load(task_file) if task_file.exists() else Task("input", "output", "plain", "{output}", "\n")
        if plugin:
            task = dataclasses.replace(task, plugin=plugin)
        source = ModelConfig(name=run)
        device = best_device()
        dtype = DTYPES.get(decode.weights, torch.float32)
        if decode.weights == "auto" and device.type == "cuda" and has_bf16_units():
            dtype = torch.bfloat16
        model = loading.load_trained(source, seed=0).to(device, dtype)  # type: ignore[arg-type, call-arg]
        return cls(model, loading.load_tokenizer(source), task, decode, local_folder(source))

    @classmethod
    def over(cls, base: str, runs: Sequence[str], decode: DecodeConfig) -> Iterator[tuple[str, Predictor]]:
        """One base, loaded once, with the adapter of one run after the other; each predictor is good until the next one.

        Args:
            base: hub id, folder or `builtin:NAME`.
            runs: run folders of adapters that were trained on it.
            decode: search settings.

        Raises:
            ModelError: a run trained no adapter, or one on another base.
        """
        model = loading.load_model(ModelConfig(name=base), seed=0).to(best_device())  # type: ignore[arg-type]
        for run in runs:
            plugins.load("seqtune.models.adapters:switch")(model, Path(run))
            tokenizer = loading.load_tokenizer(ModelConfig(name=run))
            yield run, cls(model, tokenizer, Task.load(Path(run) / "task.yaml"), decode)

    @property
    def max_new_tokens(self) -> int:
        """Decoding limit: the setting, else what training saw, else a default."""
        return self.decode.max_new_tokens or self.task.max_new_tokens or DEFAULT_NEW_TOKENS

    def predict(self, examples: Sequence[Example], tick: progress.Tick = progress.silent) -> list[Prediction]:
        """Predict every example, in the order given.

        An input that is `empty`, `too_long` or refused by the task's inspection gets that status and an empty
        prediction; a best hypothesis that did not end within the limit gets `unfinished`.

        Args:
            examples: rows; their outputs are kept as references and never shown to the model.
            tick: told how many are done.
        """
        self.model.eval()
        found: dict[int, Prediction] = {}
        sources: dict[int, np.ndarray] = {}
        inspected = self.inspect([e.input for e in examples])
        for index, ids in enumerate(self._encode(examples, [i.text for i in inspected])):
            if not examples[index].input.strip():
                found[index] = _unanswered(examples[index], "empty")
            elif inspected[index].refused:
                found[index] = _unanswered(examples[index], inspected[index].status)
            elif isinstance(ids, SupervisionError):
                found[index] = _unanswered(examples[index], "too_long")
            else:
                sources[index] = ids
        order = list(sources)
        if order:
            limits = [min(self.max_new_tokens, self.max_length - len(sources[i])) for i in order]
            for position, candidates in self.engine.generate([sources[i] for i in order], limits):
                index = order[position]
                found[index] = self._prediction(examples[index], candidates, inspected[index].status)
                tick(len(found))
        predictions = [found[i] for i in sorted(found)]
        if self.verifier is None:
            return predictions
        return verification.choose(predictions, self.verifier, abstain=self.decode.abstain)

    def _encode(self, examples: Sequence[Example], texts: Sequence[str]) -> list[np.ndarray | SupervisionError]:
        asked = [
            dataclasses.replace(e, output=None, input=text, fields={**e.fields, self.task.input: text})
            for e, text in zip(examples, texts, strict=True)
        ]
        prompts = [self.template.render(e) for e in asked]
        return self.encoder.encode_sources([p.source for p in prompts]) if prompts else []

    def _prediction(self, example: Example, candidates: list[Candidate], oddity: str) -> Prediction:
        hypotheses = tuple(
            Hypothesis(self.task.answer(self.encoder.decode(c.ids)), c.score, len(c.ids), c.ids[-1:] == [self.encoder.end])
            for c in candidates
        )
        best = hypotheses[0]
        status = (oddity or "ok") if best.finished else "unfinished"
        details = {"input_status": oddity} if oddity else {}
        return Prediction(example.id, example.input, example.output, best.text, best.score, hypotheses, status, details)


def _unanswered(example: Example, status: str) -> Prediction:
    return Prediction(example.id, example.input, example.output, "", 0.0, (), status)


def _verifier(task: Task, decode: DecodeConfig) -> plugins.Verifier | None:
    if not decode.verify:
        return None
    if task.pack is None or task.pack.verifier is None:
        raise ConfigError(
            "decode.verify: this task has no verifier; it needs a pack's task, for instance --set "
            f"task=chem:smiles-to-iupac when it is trained (installed: {', '.join(plugins.names('tasks'))})"
        )
    return plugins.find("verifiers", task.pack.verifier)()


def _inspector(task: Task) -> plugins.Inspector:
    if task.pack is not None and task.pack.inspect is not None:
        try:
            return plugins.load(task.pack.inspect)
        except MissingDependencyError as error:
            progress.console().print(f"inputs are not inspected: {error}", style="yellow", markup=False)
    return lambda texts: [plugins.Inspection(text) for text in texts]


def predict_with_progress(predictor: Predictor, examples: list[Example], title: str, quiet: bool = False) -> list[Prediction]:
    """Predict with a bar."""
    with progress.show(title, len(examples), enabled=not quiet) as tick:
        return predictor.predict(examples, tick)
