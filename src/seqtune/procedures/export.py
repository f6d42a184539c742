"""A run's model as a folder of its own, for another program to read; then asked there, and compared with the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from seqtune import folders, progress
from seqtune.config import Config, load_config
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import DEFAULT_NEW_TOKENS, Predictor, Question, predict_with_progress
from seqtune.errors import RunError, near_path
from seqtune.models import loading
from seqtune.models.adapters import load_merged
from seqtune.models.location import base_of
from seqtune.models.vocabulary import extend_embeddings, restore_embeddings
from seqtune.procedures.formats import table, to_peft
from seqtune.procedures.formats.table import Format
from seqtune.procedures.handover import chat_template, hand_over
from seqtune.records import Example, Prediction
from seqtune.runs import is_complete, read_kept_tokens
from seqtune.scoring.evaluate import read_predictions
from seqtune.sections import ModelConfig
from seqtune.tokens.encode import Encoder

MAX_DIFFERENT = 0.02  # share of verified predictions; fp16 and int8 turn a near-tie now and then, and nothing else
SHOWN = 3  # differences that an error shows


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written.

    Attributes:
        to: format, a name in `formats.table.FORMATS`.
        weights: kind of weights; `None` for the format's default.
        full_vocabulary: put a trimmed model's rows back into its base's vocabulary; all other rows are the base's.
        num_verified: ask what was written this many of the run's stored test inputs, in its own runtime.
        max_different: the share of them that may come out different.
    """

    to: str = "hf"
    weights: str | None = None
    full_vocabulary: bool = False
    num_verified: int = 0
    max_different: float = MAX_DIFFERENT


def export(run: Path, folder: Path, order: Order = Order(), *, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """Write a run's model in the format of another program, and a README that says how it is asked there.

    Args:
        run: a finished run folder.
        folder: where to write; nothing is left there if anything fails.
        order: what to write.
        trusted: models whose own Python code may run, by name; what the run's folder says about that does not count.

    Returns:
        `format`, `weights`, `num_tokens` of the vocabulary, `num_bytes`, and after a verification `runtime`, `num_verified`,
        `num_different` and `num_tokenized_differently`.

    Raises:
        RunError: the run is not finished, the folder is in the way, or too many answers come out different.
        ConfigError: the format cannot hold this model.
        MissingDependencyError: a package is not installed.
    """
    wanted = table.find(order.to)
    if not run.is_dir():
        raise RunError(f"there is no folder {str(run)!r}{near_path(run)}")
    if not is_complete(run):
        raise RunError(f"{str(run)!r} is no finished run; finish it with `seqtune fit ... --resume`")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{str(folder)!r} exists and is not empty; choose another --out")
    if order.num_verified and not (run / "predictions.jsonl").exists():
        raise RunError(f"{str(run)!r} holds no predictions to verify with; its split had no test rows")
    config, source = load_config(run / "config.yaml"), ModelConfig(name=str(run), trust_remote_code=tuple(trusted))
    tokenizer = loading.load_tokenizer(source)
    shape = loading.load_model_config(source if (run / "model" / "config.json").exists() else base_of(run, trusted).model)
    weights = wanted.check(shape, tokenizer, order.weights, asked=bool(order.num_verified))
    task = Task.load(run / "task.yaml")
    with folders.writing(folder) as hidden, folders.scratch(folder.with_name(f"{folder.name}-merged")) as merged:
        hidden.mkdir(parents=True)
        if wanted.name == "peft":
            encoder = _write_adapter(run, hidden, task, trusted)
        else:
            encoder = write_merged(run, merged, source, task, whole=order.full_vocabulary)
            wanted.write(merged, hidden, weights, adds_start=encoder.chat is None)
        facts = {"format": wanted.name, "weights": weights, "num_tokens": encoder.vocab_size}
        if order.num_verified:
            facts |= _verified(run, hidden, wanted, order, trusted)
        (hidden / "README.md").write_text(_readme(wanted, encoder, task, config, facts), encoding="utf-8")
        facts["num_bytes"] = sum(f.stat().st_size for f in hidden.rglob("*") if f.is_file())
    return facts


def write_merged(run: Path, folder: Path, source: ModelConfig, task: Task, *, whole: bool) -> Encoder:
    """Write the Hugging Face folder that every format is made from.

    Args:
        run: the run.
        folder: where to write.
        source: the run as a model, with what it may do.
        task: the run's task.
        whole: in the base's whole vocabulary.

    Returns:
        The encoder of what was written.
    """
    config = load_config(run / "config.yaml")
    model, tokenizer = load_merged(source, config.train.seed), loading.load_tokenizer(source)
    kept = read_kept_tokens(run)
    if whole and kept is not None:
        model, tokenizer = _whole(base_of(run, source.trust_remote_code), model, tokenizer, np.array(kept))
    size = int(model.config.get_text_config().vocab_size)
    encoder = Encoder(tokenizer, loading.max_length(model.config, source), size, roles=task.rendering.roles)
    hand_over(model, encoder, task, config.decode, folder)
    return encoder


def _write_adapter(run: Path, folder: Path, task: Task, trusted: Sequence[str]) -> Encoder:
    """Write the adapter alone, with the tokenizer of its base."""
    config = base_of(run, trusted)
    shape, tokenizer = loading.load_model_config(config.model), loading.load_tokenizer(config.model)
    size, template = int(shape.get_text_config().vocab_size), task.rendering
    to_peft.check(run, config, read_kept_tokens(run))
    encoder = Encoder(tokenizer, loading.max_length(shape, config.model), size, roles=template.roles)
    if template.roles is None:
        tokenizer.chat_template = chat_template(template, encoder)
    to_peft.write(run, folder, config, tokenizer, encoder.end)
    return encoder


def _whole(
    config: Config, trained: PreTrainedModel, trimmed: PreTrainedTokenizerBase, kept: np.ndarray
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    base, tokenizer = load_merged(config.model, config.train.seed), loading.load_tokenizer(config.model)
    added = np.flatnonzero(kept >= len(tokenizer))
    pieces: Any = trimmed.convert_ids_to_tokens(added.tolist())
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    extend_embeddings(base, {int(kept[i]): [0] for i in added})
    restore_embeddings(base, trained, kept)
    return base, tokenizer


def _verified(run: Path, folder: Path, wanted: Format, order: Order, trusted: Sequence[str]) -> dict[str, Any]:
    """Ask the exported model what the run was asked, in the program that it is for.

    The stored predictions are what it must say. Where their search is one that the program lacks (beams, a verifier, a choice
    among given answers), the run itself answers again in the way that the program can.

    Raises:
        RunError: too many answers come out different.
    """
    stored = read_predictions(str(run / "predictions.jsonl"))[: order.num_verified]
    config, task = load_config(run / "config.yaml"), Task.load(run / "task.yaml")
    beams = config.decode.num_beams if wanted.searches else 1
    alike = beams == config.decode.num_beams and not config.decode.verify and not task.answers
    plain = {"num_beams": beams, "num_return": 1, "verify": False, "abstain": False, "engine": "auto"}
    predictor = Predictor.of_model(
        str(run), dataclasses.replace(task, answers=None), config.decode.model_copy(update=plain), trusted
    )
    asked = {
        i: question
        for i, question in enumerate(predictor.questions([_as_asked(p) for p in stored]))
        if isinstance(question, Question)
    }
    kept = [stored[i] for i in asked]
    expected = kept if alike else predict_with_progress(predictor, [_as_asked(p) for p in kept], "the run itself")
    written, num_odd = [], 0
    runtime = wanted.open(folder, adds_start=predictor.encoder.chat is None, trusted=bool(trusted))
    questions = list(asked.values())
    prompts, limits = [predictor.encoder.prompt_text(q.prompt) for q in questions], [q.limit for q in questions]
    with progress.show(wanted.runtime, len(questions)) as tick:
        for question, (text, num_read) in zip(questions, runtime.answers(prompts, limits), strict=True):
            written.append(predictor.template.answer(predictor.encoder.answer_text(text), question.example))
            num_odd += num_read != len(question.ids)
            tick(len(written))
    answered = zip(questions, expected, written, strict=True)
    different = [(q.example.input, e.prediction, text) for q, e, text in answered if e.prediction != text]
    if len(different) > order.max_different * len(written):
        shown = "\n".join(f"  {asked!r}: {ours!r} became {theirs!r}" for asked, ours, theirs in different[:SHOWN])
        raise RunError(
            f"{len(different)} of {len(written)} answers come out different in {wanted.runtime}, more than the share of "
            f"{order.max_different:g} that is allowed (--max-different); {num_odd} of the prompts are tokenized differently; "
            f"nothing was written\n{shown}"
        )
    return {
        "runtime": wanted.runtime, "num_verified": len(written), "num_different": len(different),
        "num_tokenized_differently": num_odd, "verified_against": "stored predictions" if alike else "the run's greedy answers",
    }  # fmt: skip


def _as_asked(prediction: Prediction) -> Example:
    return Example(prediction.id, prediction.input, None, prediction.fields, context=prediction.context)


def _readme(wanted: Format, encoder: Encoder, task: Task, config: Config, facts: dict[str, Any]) -> str:
    """How the folder is asked without seqtune; the code is run by a test."""
    template = task.rendering
    columns = dict.fromkeys(template.source_columns, "...") | {task.input: "an input"}
    prompt = encoder.prompt_text(template.render(Example("1", "an input", None, columns)))
    code = wanted.lines.format(
        prompt=prompt, limit=config.decode.max_new_tokens or task.max_new_tokens or DEFAULT_NEW_TOKENS,
        num_beams=config.decode.num_beams, adds_start=encoder.chat is None,
    )  # fmt: skip
    lines = [
        f"# {task.input} -> {task.output}, for {wanted.runtime}",
        "",
        f"Written by `seqtune export --to {wanted.name} --weights {facts['weights']}`, with {facts['num_tokens']:,} tokens.",
        "",
        "Without seqtune it is asked like this, in Python (`FOLDER` is the folder of this file):",
        "",
        "```python",
        f"{code}```",
        "",
    ]
    if "num_verified" in facts:
        lines += [
            f"{facts['num_verified']} inputs of the run's test rows were asked in {wanted.runtime}: {facts['num_different']} "
            f"answers differ from {facts['verified_against']}, and {facts['num_tokenized_differently']} prompts were tokenized "
            "differently.",
            "",
        ]
    if task.answers:
        lines += ["Out there it writes freely; `seqtune predict` gives the likeliest of the answers that there are.", ""]
    return "\n".join(lines)
