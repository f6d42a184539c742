"""The model card of a run: what it is, how good, on what, and where it stops."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import yaml

from seqtune.config import Config
from seqtune.data.templates import Template
from seqtune.report.scores import interval, scores_of

LIMITS = (
    "",
    "## Limits",
    "",
    "The scores hold for inputs like the test rows. The model answers every input, also those far from its data; "
    "check answers where it matters.",
    "",
)
USE = (
    "## Use",
    "",
    "```",
    "seqtune predict RUN 'an input'",
    "```",
    "",
    "`RUN` is the folder of this file; `model/` is a standard Hugging Face folder, `task.yaml` has the template.",
    "",
)


def model_card(
    config: Config,
    data: dict[str, Any],
    outcome: dict[str, Any],
    metrics: dict[str, Any] | None,
    base: Mapping[str, str] = MappingProxyType({}),
    *,
    takes_messages: bool = False,
) -> str:
    """Markdown with hub metadata; every number in it was measured in this run.

    Args:
        config: of the run.
        data: content of `data.json`.
        outcome: how the training ended.
        metrics: content of `metrics.json`, if there were test rows.
        base: where a base that was read from a GGUF file comes from (`seqtune.models.location.origin`).
        takes_messages: the tokenizer's chat template makes the prompt of a user message.
    """
    start = "random weights in the shape of" if config.model.init == "random" else "fine-tuned from"
    lines = [
        "---",
        yaml.safe_dump(_front(config, base), sort_keys=False).strip(),
        "---",
        "",
        f"# {title(config, data)}",
        "",
        f"A causal language model {start} `{config.model.name}` with seqtune.{_base(base)}",
        "",
        *data_lines(config.data.path, data, metrics),
        *training_lines(outcome),
        "## Results on the test rows",
        "",
    ]
    folder, before = "RUN/model", "In plain transformers:"
    if config.adapter.method != "full":
        folder, before = "DIR", "In plain transformers, after `seqtune export RUN --out DIR`, which merges the adapter:"
    return "\n".join(
        [
            *lines,
            *result_lines(metrics),
            *LIMITS,
            *USE,
            before,
            "",
            *in_transformers(config, folder, takes_messages=takes_messages),
        ]
    )


def title(config: Config, data: dict[str, Any]) -> str:
    """What the model does, in a few words."""
    return f"{len(data['mixture'])} tasks" if config.mixture else f"{config.data.input} -> {config.data.output}"


def data_lines(name: str | None, data: dict[str, Any], metrics: dict[str, Any] | None) -> list[str]:
    """What it was trained on and what of the held-out rows training has seen.

    Args:
        name: of the table; `None` for a mixture.
        data: content of `data.json`.
        metrics: content of `metrics.json`.
    """
    return [
        "## Data",
        "",
        f"{f'`{name}`' if name else 'A mixture'}: {data['num_rows']} rows; "
        + ", ".join(f"{n} {side}" for side, n in data["splits"].items())
        + f"; {data['rejected']['total']} rejected.",
        "",
        *_mixture(data, metrics),
        "Held-out rows that training has seen in some form:",
        "",
        *(
            f"- {side}: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in counts.items())
            for side, counts in data["leakage"].items()
        ),
        "",
    ]


def _mixture(data: dict[str, Any], metrics: dict[str, Any] | None) -> list[str]:
    """Each task's part of a mixture, and its score."""
    if "mixture" not in data:
        return []
    scores = {task["task"]: task for task in (metrics or {}).get("tasks", ())}
    lines = ["| task | prompts | tokens with loss | score (95% interval) |", "|---|---|---|---|"]
    for share in data["mixture"]:
        score = scores.get(share["task"])
        shown = (
            f"{score['metric']} {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
            if score and score["value"] is not None
            else ""
        )
        prompts = "held out" if share["held_out"] else f"{share['num_prompts']:,}"
        lines.append(f"| {share['task']} | {prompts} | {share['num_loss_tokens']:,} | {shown} |")
    return [*lines, ""]


def _front(config: Config, base: Mapping[str, str]) -> dict[str, Any]:
    """Hub metadata."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["seqtune"]}
    if "licence" in base:
        front["license"] = base["licence"]
    if ":" not in config.model.name and not base and config.model.init == "pretrained":
        front["base_model"] = config.model.name
    return front


def _base(base: Mapping[str, str]) -> str:
    if not base:
        return ""
    name = " of ".join(filter(None, (base.get("name"), base.get("organization")))) or "a model without a name"
    licence = f"licence {base['licence']}" if "licence" in base else "no licence is named in the file"
    return f" The base is {name} ({licence}), read from `{base['file']}` (SHA-256 begins {base['sha256'][:12]})."


def in_transformers(config: Config, folder: str, *, takes_messages: bool) -> list[str]:
    """How the model is used without seqtune, with the exact prompt; the code is run by a test.

    Args:
        config: of the run.
        folder: what transformers is given: a folder or a hub id.
        takes_messages: the tokenizer's chat template makes the prompt of a user message.
    """
    lines = ["```python"]
    if takes_messages:
        system = [{"role": "system", "content": config.format.system}] if config.format.system else []
        turns = ", ".join([*map(repr, system), '{"role": "user", "content": "an input"}'])
        lines += [
            "from transformers import pipeline",
            "",
            f'ask = pipeline("text-generation", model="{folder}")',
            f'print(ask([{turns}])[0]["generated_text"][-1]["content"].strip())',
            "```",
            "",
        ]
    template = Template.from_config(config.format)
    if template.roles is None:
        lines += ["or with the prompt spelt out, down to its last character:", "", "```python"] if takes_messages else []
        columns = ", ".join(f'{name}="..."' for name in sorted(template.source_columns))
        prompt = template.instruction + template.separator.replace("{", "{{").replace("}", "}}")
        lines += [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer, model = (kind.from_pretrained("{folder}") for kind in (AutoTokenizer, AutoModelForCausalLM))',
            f'prompt = {prompt!r}.format(input="an input"{", " if columns else ""}{columns})',
            'read = tokenizer(prompt, return_tensors="pt")',
            'written = model.generate(**read)[0, read["input_ids"].shape[1] :]',
            "print(tokenizer.decode(written, skip_special_tokens=True).strip())",
            "```",
            "",
        ]
    if config.format.answers:
        lines += ["Out there it writes freely; `seqtune predict` gives the likeliest of the answers that there are.", ""]
    if config.format.target != "{output}":
        lines += [f"The model writes `{config.format.target}`; `seqtune predict` gives the `{{output}}` of it.", ""]
    return lines


def training_lines(outcome: dict[str, Any]) -> list[str]:
    """How long it was trained, and which weights were kept.

    Args:
        outcome: content of `outcome.json`.
    """
    return [
        "## Training",
        "",
        f"{outcome['step']} of {outcome['total_steps']} planned steps ({outcome['reason']}), "
        f"{outcome['num_tokens']:,} tokens, {outcome['seconds']:.0f} s. {_which_weights(outcome)}",
        "",
    ]


def _which_weights(outcome: dict[str, Any]) -> str:
    rewinds = outcome.get("rewinds", 0)
    said = f"The training diverged {rewinds} times and went back each time, with half the learning rate. " if rewinds else ""
    if outcome["best"] is None:
        return f"{said}There was no validation; the weights are those of the end, step {outcome['step']}."
    return f"{said}The weights are those of step {outcome['best_step']}, the best by validation."


def result_lines(metrics: dict[str, Any] | None) -> list[str]:
    """The scores, a line each, as a table; every one with its interval."""
    if metrics is None:
        return ["There were no test rows, so nothing is known about unseen inputs."]
    return [
        f"{metrics['num_items']} rows, 95% intervals; signatures are in `metrics.json`.",
        "",
        "| metric | value (95% interval) |",
        "|---|---|",
        *(f"| {name} | {interval(score)} |" for name, score in scores_of(metrics).items()),
    ]
