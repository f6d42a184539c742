"""Inputs -> predictions, through an engine, returned in the order given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seqtune import plugins, progress
from seqtune.config import Config, load_config, validate
from seqtune.data.tasks import Task
from seqtune.decoding import verification
from seqtune.decoding.engines import READS_FOLDER, make_choice_engine, make_engine
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.weights import dtype_of
from seqtune.errors import DataError, MissingDependencyError, RunError, SupervisionError, TooLongError
from seqtune.models import loading
from seqtune.models.adapters import Adapter, load_trained
from seqtune.models.location import beside, holds_adapter, local_folder
from seqtune.models.machine import best_device
from seqtune.models.soft_prompts import num_virtual_tokens
from seqtune.records import Candidate, Example, Hypothesis, Prediction, Prompt, lone_surrogate
from seqtune.runs import VOCABULARY, differences
from seqtune.scoring.metrics.answers import probabilities
from seqtune.sections import DecodeConfig, ModelConfig
from seqtune.tokens.encode import Encoder
from seqtune.yaml_files import read_yaml_mapping

SEARCH = "decode.yaml"  # in a model folder that `seqtune push` made: the run's search
DEFAULT_NEW_TOKENS = 128  # for a model that was not trained here and so knows no target length


@dataclass(frozen=True, slots=True)
class Question:
    """What an engine is asked for one example.

    Attributes:
        example: as it came.
        prompt: the example in the template.
        ids: token ids of the prompt [T].
        limit: the most new tokens.
        oddity: the word of the task's inspection for what is unusual about the input; "" for an ordinary one.
    """

    example: Example
    prompt: Prompt
    ids: np.ndarray
    limit: int
    oddity: str


class Predictor:
    """A model, its tokenizer and its task, ready to answer.

    `predict` goes the whole way. Who decodes in another way, as a server does, takes the same steps one by one: `questions`,
    an engine, `answer`, `verified`.

    Args:
        model: a causal LM; moved nowhere, switched to evaluation, and not to be changed while this lives.
        tokenizer: its tokenizer.
        task: columns and template.
        decode: search settings.
        folder: where the model lies, for engines that load it themselves.
        adapter_method: of the model's adapter, if it has one.

    Example:
        predictor = Predictor.of_run("runs/names")
        predictor.predict([Example("1", "CCO", None)])[0].prediction
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        decode: DecodeConfig,
        folder: Path | None = None,
        adapter_method: str = "full",
    ):
        self.model, self.task, self.frozen = model, task, FrozenModel(model)
        self.folder, self.adapter_method = folder, adapter_method
        self.max_length = loading.max_length(model.config, ModelConfig())
        virtual = num_virtual_tokens(model)
        self.template = task.rendering
        size, roles = model.config.vocab_size, self.template.roles
        self.encoder = Encoder(tokenizer, self.max_length, size, num_virtual=virtual, roles=roles)
        self.inspect = _inspector(task)
        self._search_by(decode)

    def _search_by(self, decode: DecodeConfig) -> None:
        self.decode, self.verifier = decode, verification.make_verifier(self.task, decode)
        if self.task.answers:
            answers = self.encoder.answers(self.task.answers, self.template)
            self.engine = make_choice_engine(self.frozen, answers, decode)
            return
        searched = decode.model_copy(update={"num_return": self.num_candidates})
        self.engine = make_engine(self.frozen, self.encoder.end, searched, self.folder, self.adapter_method)

    def searching_by(self, decode: DecodeConfig) -> Predictor:
        """The same model and task with another search; nothing is loaded.

        Raises:
            ConfigError: the task has no verifier, or the engine cannot serve the model.
        """
        other = copy.copy(self)
        other._search_by(decode)
        return other

    def asking(self, task: Task) -> Predictor:
        """The same model and search for another task, whose prompts are framed alike; nothing is loaded.

        Raises:
            ConfigError: the task's answers cannot be encoded.
        """
        assert task.rendering.roles == self.template.roles
        other = copy.copy(self)
        other.task, other.template, other.inspect = task, task.rendering, _inspector(task)
        other._search_by(self.decode)
        return other

    @classmethod
    def of_run(
        cls, run: str, decode: Mapping[str, Any] | None = None, plugin: str | None = None, trusted: Sequence[str] = ()
    ) -> Predictor:
        """The one way from a folder to answers: `fit` scores with it what `predict`, `evaluate` and a study ask later.

        Args:
            run: run folder; or any model folder or hub id, which then answers with the plain template.
            decode: settings that differ from the run's own `decode` section, such as `{"num_beams": 5}`.
            plugin: a pack's task whose verifier, metrics and inspection to use instead of the run's own.
            trusted: models whose own Python code may run, by name; what the run's folder says about that does not count.

        Raises:
            RunError: the folder is a run that has no model yet.
            ModelError: the model cannot be loaded.
            ConfigError: the decode settings contradict each other.
        """
        if is_run(run) and not (Path(run) / "model").exists():
            raise RunError(f"{run!r} has no model yet; finish the training with `seqtune fit ... --resume`")
        for name, why in differences(Path(run), "model/", "config.yaml", "task.yaml", VOCABULARY).items():
            said = f"{Path(run) / name}: {why}; answers may not be those that were scored (seqtune verify {run} checks all)"
            progress.console().print(f"warning: {said}", style="yellow", markup=False)
        return cls.of_model(run, task_of(run, plugin), decode_settings(run, decode or {}), trusted)

    @classmethod
    def of_model(cls, name: str, task: Task, decode: DecodeConfig, trusted: Sequence[str] = ()) -> Predictor:
        """A model by its name, in the precision that `decode.weights` says.

        Raises:
            ModelError: the model cannot be loaded.
        """
        source, adapter = ModelConfig(name=name, trust_remote_code=tuple(trusted)), None
        if decode.engine in READS_FOLDER and not holds_adapter(Path(name).expanduser()):
            loading.check_weights(source)
            model = loading.load_architecture(source)
        else:
            model, adapter = load_trained(source, seed=0)
            model.to(best_device(), dtype_of(decode))  # type: ignore[arg-type, call-arg]
        method = adapter.method if adapter else "full"
        return cls(model, loading.load_tokenizer(source), task, decode, local_folder(source), method)

    @classmethod
    def over(
        cls, base: str, runs: Sequence[str], decode: Mapping[str, Any] | None = None, trusted: Sequence[str] = ()
    ) -> Iterator[tuple[str, Predictor]]:
        """One base, loaded once, with the adapter of one run after the other; each predictor is good until the next one.

        Args:
            base: hub id, folder or `builtin:NAME`.
            runs: run folders of adapters that were trained on it.
            decode: settings that differ from each run's own.
            trusted: models whose own Python code may run, by name.

        Raises:
            ModelError: a run trained no adapter, or one on another base.
            ConfigError: a run's own settings ask for other weights than the first one's.
        """
        settings = [decode_settings(run, decode or {}) for run in runs]
        model = loading.load_model(ModelConfig(name=base, trust_remote_code=tuple(trusted)), seed=0)
        model.to(best_device(), dtype_of(settings[0]))  # type: ignore[arg-type, call-arg]
        for run, chosen in zip(runs, settings, strict=True):
            adapter = Adapter.of_run(model, Path(run))
            tokenizer = loading.load_tokenizer(ModelConfig(name=run, trust_remote_code=tuple(trusted)))
            yield run, cls(model, tokenizer, task_of(run), chosen, adapter_method=adapter.method)
            adapter.detach()

    @property
    def max_new_tokens(self) -> int:
        """Decoding limit: the setting, else what training saw, else a default."""
        return self.decode.max_new_tokens or self.task.max_new_tokens or DEFAULT_NEW_TOKENS

    @property
    def num_candidates(self) -> int:
        """Hypotheses that are looked at: with a verifier or a set of answers all that there are."""
        if self.task.answers:
            return len(self.task.answers)
        return self.decode.num_beams if self.decode.verify else self.decode.num_return

    def predict(self, examples: Sequence[Example], tick: progress.Tick = progress.silent) -> list[Prediction]:
        """Predict every example, in the order given.

        An input that is `empty`, `too_long` or refused by the task's inspection gets that status and an empty
        prediction; a best hypothesis that did not end within the limit gets `unfinished`.

        Args:
            examples: rows; their outputs are kept as references and never shown to the model.
            tick: told how many are done.
        """
        self.model.eval()
        found = dict(enumerate(self.questions(examples)))
        asked = {i: question for i, question in found.items() if isinstance(question, Question)}
        order, num_done = list(asked), len(found) - len(asked)
        if order:
            sources, limits = [asked[i].ids for i in order], [asked[i].limit for i in order]
            for done, (position, candidates) in enumerate(self.engine.generate(sources, limits), start=num_done + 1):
                index = order[position]
                found[index] = self.answer(asked[index], candidates)
                tick(done)
        return self.verified([p for p in found.values() if isinstance(p, Prediction)])

    def questions(self, examples: Sequence[Example]) -> list[Question | Prediction]:
        """What to ask the engine for each example; where it need not be asked, the prediction, which has no answer.

        Raises:
            DataError: an example lacks a column of the template.
        """
        self._check_columns(examples)
        inspected = self.inspect([e.input for e in examples])
        prompts = self._prompts(examples, [i.text for i in inspected])
        encoded = self._encode(prompts)
        return [self._question(*each) for each in zip(examples, inspected, prompts, encoded, strict=True)]

    def _question(
        self, example: Example, inspection: plugins.Inspection, prompt: Prompt, ids: np.ndarray | SupervisionError | None
    ) -> Question | Prediction:
        if not example.input.strip():
            return self._unanswered(example, "empty")
        if inspection.refused:
            return self._unanswered(example, inspection.status)
        if isinstance(ids, TooLongError):
            return self._unanswered(example, "too_long")
        if ids is None or isinstance(ids, SupervisionError):
            return self._unanswered(example, "invalid_text")
        return Question(example, prompt, ids, min(self.max_new_tokens, self.max_length - len(ids)), inspection.status)

    def verified(self, predictions: list[Prediction]) -> list[Prediction]:
        """The predictions as they are, or with `decode.verify` as the task's verifier chooses among their hypotheses."""
        if self.verifier is None:
            return predictions
        return verification.choose(predictions, self.verifier, abstain=self.decode.abstain)

    def _check_columns(self, examples: Sequence[Example]) -> None:
        """Refuse examples without a column that the template puts into the prompt."""
        needed = self.template.source_columns - {self.task.input}
        lacking = next((needed - e.fields.keys() for e in examples if not needed <= e.fields.keys()), None)
        if lacking:
            columns = ", ".join(map(repr, sorted(lacking)))
            raise DataError(
                f"the template {self.task.template!r} needs the column {columns} beside the input, which a text alone does not "
                "have; give a table with that column (seqtune predict RUN --file TABLE)"
            )

    def _prompts(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Prompt]:
        prompts = []
        for example, text in zip(examples, texts, strict=True):
            fields = {**example.fields, self.task.input: text}
            prompts.append(self.template.render(dataclasses.replace(example, output=None, input=text, fields=fields)))
        return prompts

    def _encode(self, prompts: Sequence[Prompt]) -> list[np.ndarray | SupervisionError | None]:
        """Token ids of each prompt; `None` for one that holds half a character, which no UTF-8 text can."""
        readable = [i for i, prompt in enumerate(prompts) if not any(map(lone_surrogate, prompt.texts))]
        encoded: list[np.ndarray | SupervisionError | None] = [None] * len(prompts)
        if readable:
            for i, ids in zip(readable, self.encoder.encode_sources([prompts[i] for i in readable]), strict=True):
                encoded[i] = ids
        return encoded

    def text_of(self, ids: list[int], example: Example) -> str:
        """The answer in what the model wrote."""
        return self.template.answer(self.encoder.decode(ids), example)

    def answer(self, question: Question, candidates: Sequence[Candidate]) -> Prediction:
        """What the engine found for a question, as text."""
        example, oddity = question.example, question.oddity
        hypotheses = tuple(
            Hypothesis(self.text_of(c.ids, example), c.score, len(c.ids), c.ids[-1:] == [self.encoder.end])
            for c in candidates[: self.num_candidates]
        )
        best = hypotheses[0]
        status = (oddity or "ok") if best.finished else "unfinished"
        details = {"input_status": oddity} if oddity else {}
        if self.task.answers:
            details["probability"] = f"{probabilities(hypotheses)[best.text]:.4f}"
        asked = (example.id, example.input, example.output)
        kept = (self._columns(example), example.context)
        return Prediction(*asked, best.text, best.score, hypotheses, status, details, *kept)

    def _unanswered(self, example: Example, status: str) -> Prediction:
        asked, kept = (example.id, example.input, example.output), (self._columns(example), example.context)
        return Prediction(*asked, "", 0.0, (), status, {}, *kept)

    def _columns(self, example: Example) -> dict[str, str]:
        """The other columns that the template needs, kept so that the same question can be asked again."""
        names = (self.template.source_columns | self.template.target_columns) - {self.task.input, self.task.output}
        return {name: example.fields[name] for name in sorted(names & example.fields.keys())}


def is_run(name: str) -> bool:
    """True for a folder that a training was begun in."""
    return (Path(name) / "config.yaml").exists()


def task_of(name: str, plugin: str | None = None) -> Task:
    """The task that a run was trained for; the plain one for a model that was not trained here.

    Args:
        name: run folder, model folder or hub id.
        plugin: a pack's task to use instead of the run's own.
    """
    file = beside(name, "task.yaml")
    task = Task.load(file) if file else Task("input", "output", "plain", "{output}", "\n")
    return dataclasses.replace(task, plugin=plugin) if plugin else task


def decode_settings(name: str, overrides: Mapping[str, Any]) -> DecodeConfig:
    """A run's own `decode` section, changed where `overrides` says so; see `with_overrides`.

    Raises:
        ConfigError: a setting is wrong, or they contradict each other.
    """
    file = None if is_run(name) else beside(name, SEARCH)
    if file:
        own = validate(DecodeConfig, read_yaml_mapping(file, "search"), "decode.").model_dump()
    else:
        own = (load_config(Path(name) / "config.yaml") if is_run(name) else Config()).decode.model_dump()
    return validate(DecodeConfig, with_overrides(own, overrides), "decode.")


def with_overrides(own: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings changed where `overrides` says so; fewer beams lower `num_return` too, unless that is given."""
    if isinstance(beams := overrides.get("num_beams"), int):
        own = {**own, "num_return": min(own["num_return"], max(1, beams))}
    return own | dict(overrides)


def _inspector(task: Task) -> plugins.Inspector:
    if task.pack is not None and task.pack.inspect is not None:
        try:
            return plugins.load(task.pack.inspect)
        except MissingDependencyError as error:
            progress.console().print(f"inputs are not inspected: {error}", style="yellow", markup=False)
    return _ordinary


def _ordinary(texts: Sequence[str]) -> list[plugins.Inspection]:
    return [plugins.Inspection(text) for text in texts]


def predict_with_progress(predictor: Predictor, examples: list[Example], title: str, quiet: bool = False) -> list[Prediction]:
    """Predict with a bar."""
    with progress.show(title, len(examples), enabled=not quiet) as tick:
        return predictor.predict(examples, tick)
