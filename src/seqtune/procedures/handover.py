"""A model folder from which plain transformers answers as `predict` does: the format and the search go with the weights.

The format becomes the tokenizer's chat template, so that one user message is put into the very prompt that the model was
trained on; the search becomes `generation_config.json`.

    pipeline("text-generation", model=folder)([{"role": "user", "content": "CCO"}])
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import yaml
from transformers import GenerationConfig, PreTrainedModel

from seqtune import runs
from seqtune.data.tasks import Task
from seqtune.data.templates import Template
from seqtune.decoding.predictor import SEARCH
from seqtune.models.loading import save_model
from seqtune.records import Prompt
from seqtune.sections import DecodeConfig
from seqtune.tokens.encode import Encoder

# of the decode section; not the engine and the kind of weights, which are a machine's
SEARCHED = ("num_beams", "num_return", "length_penalty", "max_new_tokens", "verify", "abstain")
PROBES = ("a", "Ab 1", " (=C)", "é")  # texts on which the chat template must give the prompts that were trained on
TURNS = (
    "{{% for message in messages %}}{{% if loop.first %}}{{{{ {start} }}}}{{% endif %}}"
    "{{% if message['role'] == 'user' %}}{user}"
    "{{% elif message['role'] == 'assistant' %}}{{{{ message['content'] }}}}{{{{ {end} }}}}"
    "{{% else %}}{{{{ raise_exception('this model was trained without ' + message['role'] + ' turns') }}}}{{% endif %}}"
    "{{% endfor %}}"
)


def hand_over(model: PreTrainedModel, encoder: Encoder, task: Task, decode: DecodeConfig, folder: Path) -> None:
    """Write a standard Hugging Face folder that answers as `predict` does.

    Args:
        model: the weights.
        encoder: its tokenizer gets the format as its chat template, or none where a chat template cannot say it.
        task: the format, and the decoding limit.
        decode: how answers are searched for.
        folder: where to write.
    """
    template = task.rendering
    if template.roles is None:
        encoder.tokenizer.chat_template = chat_template(template, encoder)
    save_model(model, encoder.tokenizer, folder, encoder.end)
    # a pipeline samples, at its own temperature, unless it is told not to
    search: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "num_beams": decode.num_beams}
    search["max_new_tokens"] = decode.max_new_tokens or task.max_new_tokens
    if decode.num_beams > 1:
        search |= {"length_penalty": decode.length_penalty, "early_stopping": False}
    GenerationConfig(**(model.generation_config or GenerationConfig()).to_diff_dict() | search).save_pretrained(folder)


def write_beside(task: Task, decode: DecodeConfig, folder: Path) -> None:
    """Write the task and the search beside a model, so that `predict` answers from its folder as from the run."""
    task.save(folder / "task.yaml")
    search = {key: value for key, value in decode.model_dump().items() if key in SEARCHED}
    runs.write_text(folder / SEARCH, yaml.safe_dump(search, sort_keys=False))


def chat_template(template: Template, encoder: Encoder) -> str | None:
    """The format as a chat template: a user turn is the input, an assistant turn the target.

    Returns:
        Jinja; `None` where the format needs other columns, or where the tokenizer makes other tokens of the whole prompt.
    """
    if template.source_columns:
        return None
    start, end = ("".join(encoder.tokenizer.convert_ids_to_tokens(ids)) for ids in (encoder.start, [encoder.end]))
    parts = string.Formatter().parse(template.instruction + template.separator.replace("{", "{{").replace("}", "}}"))
    user = "".join(_constant(text) + ("{{ message['content'] }}" if name else "") for text, name, _, _ in parts)
    written = TURNS.format(start=json.dumps(start), end=json.dumps(end), user=user)
    return written if _gives_the_same(written, template, encoder) else None


def _constant(text: str) -> str:
    # JSON's escapes are Jinja's, except for what lies beyond the first 65,536 characters, which needs none
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _gives_the_same(written: str, template: Template, encoder: Encoder) -> bool:
    sources = encoder.encode_sources(
        [Prompt(template.instruction.format(input=text) + template.separator, None) for text in PROBES]
    )
    for text, source in zip(PROBES, sources, strict=True):
        turns = [{"role": "user", "content": text}]
        found: Any = encoder.tokenizer.apply_chat_template(
            turns, chat_template=written, add_generation_prompt=True, return_dict=True
        )
        if isinstance(source, Exception) or list(found["input_ids"]) != source.tolist():
            return False
    return True
