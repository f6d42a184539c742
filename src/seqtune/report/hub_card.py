"""The model card of a folder that goes to the hub: its metadata carries every score as a `model-index`.

The keys are the hub's (https://huggingface.co/docs/hub/model-cards); huggingface_hub writes them.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from seqtune.config import Config
from seqtune.report.card import LIMITS, data_lines, in_transformers, result_lines, title, training_lines
from seqtune.report.scores import scores_of


def hub_card(
    place: str,
    config: Config,
    data: dict[str, Any],
    outcome: dict[str, Any],
    metrics: dict[str, Any] | None,
    licence: str | None,
    *,
    takes_messages: bool = False,
) -> str:
    """Markdown with hub metadata; every number in it was measured in the run. No path of this machine is in it.

    Args:
        place: hub id, or the folder's name.
        config: of the run.
        data: content of `data.json`.
        outcome: content of `outcome.json`.
        metrics: content of `metrics.json`, if there were test rows.
        licence: of the base, `None` where it is not known.
        takes_messages: the tokenizer's chat template makes the prompt of a user message.
    """
    table, base = PurePath(config.data.path).name if config.data.path else None, _public(config)
    front = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["seqtune"], license=licence, base_model=base,
        model_name=place if metrics else None, eval_results=_results(config, data, metrics) if metrics else None,
    )  # fmt: skip
    start = "random weights in the shape of" if config.model.init == "random" else "fine-tuned from"
    known = f"whose licence is {licence}" if licence else "whose licence is named nowhere on the machine that wrote this card"
    lines = [
        "---",
        front.to_yaml(),
        "---",
        "",
        f"# {title(config, data)}",
        "",
        f"A causal language model {start} `{base or PurePath(config.model.name).name}`, {known}, with seqtune.",
        "",
        *data_lines(table, data, metrics),
        f"Fingerprint of all rows: `{data['fingerprint']}`.",
        "",
        *training_lines(outcome),
        "## Results on the test rows",
        "",
        *result_lines(metrics),
        *LIMITS,
        "## Use",
        "",
        "```",
        f"seqtune predict {place} 'an input'",
        "```",
        "",
        "In plain transformers:",
        "",
        *in_transformers(config, place, takes_messages=takes_messages),
    ]
    return "\n".join(lines)


def _public(config: Config) -> str | None:
    """The base by a name that others know: a hub id."""
    name = config.model.name
    elsewhere = ":" in name or name.count("/") != 1 or name.startswith((".", "~", "/")) or Path(name).exists()
    return None if elsewhere or config.model.init == "random" else name


def _results(config: Config, data: dict[str, Any], metrics: dict[str, Any]) -> list[EvalResult]:
    table = PurePath(config.data.path or "mixture").name
    return [
        EvalResult(
            task_type="text-generation", task_name=title(config, data),
            dataset_type=PurePath(table).stem, dataset_name=f"{table}, {metrics['num_items']} test rows",
            dataset_revision=data["fingerprint"], metric_type=name, metric_value=score["value"],
            metric_name=f"{name.replace('_', ' ')} (95% interval {score['low']:.3f} to {score['high']:.3f})",
            metric_args={"low": score["low"], "high": score["high"], "signature": score["signature"]},
        )
        for name, score in scores_of(metrics).items()
    ]  # fmt: skip
