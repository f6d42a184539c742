"""The configuration: YAML -> validated models; all errors are reported at once, each with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from seqtune import plugins
from seqtune.sections import (
    SOFT_PROMPTS,
    AdapterConfig,
    DataConfig,
    DecodeConfig,
    FormatConfig,
    MixtureConfig,
    ModelConfig,
    Section,
    TrainConfig,
)
from seqtune.yaml_files import opened, put, read_yaml_mapping, validate


class Config(Section):
    """A whole run."""

    task: str | None = Field(
        default=None, description="a pack's task, such as chem:smiles-to-iupac, or a task.yaml: sets columns and format"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    mixture: MixtureConfig | None = Field(default=None, description="many tasks instead of one table, or their YAML file")
    format: FormatConfig = Field(default_factory=FormatConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    decode: DecodeConfig = Field(default_factory=DecodeConfig)
    out: str | None = Field(default=None, description="run folder; default: runs/<data file name>")

    @model_validator(mode="after")
    def _one_source(self) -> Config:
        if self.mixture is None:
            return self
        data, form, defaults = self.data, self.format, FormatConfig()
        given = [key for key in ("path", "validation_path", "test_path") if getattr(data, key)]
        if given or self.task:
            raise ValueError(f"{f'data.{given[0]}' if given else 'task'} and mixture both say what to train on; give one")
        for key in ("target", "inversion", "answers", *(["template"] if form.template != "chat" else [])):
            if getattr(form, key) != getattr(defaults, key):
                raise ValueError(f"format.{key} and mixture: the mixture's tasks bring their own; leave it out")
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> Config:
        method = self.adapter.method
        if method in SOFT_PROMPTS and self.train.batching == "pack":
            raise ValueError(f"adapter.method {method!r} and train.batching 'pack': packed rows would need a soft prompt each")
        if method == "prefix_tuning" and self.train.gradient_checkpointing:
            raise ValueError(f"adapter.method {method!r} trains nothing with train.gradient_checkpointing; set that to false")
        if method in SOFT_PROMPTS and self.model.trim_vocabulary:
            raise ValueError(f"adapter.method {method!r} and model.trim_vocabulary: virtual tokens follow the vocabulary")
        if method != "full" and self.model.adapt_vocabulary:
            raise ValueError(f"adapter.method {method!r} trains no embeddings, so model.adapt_vocabulary must be 0")
        if method != "full" and self.train.optimizer == "muon":
            raise ValueError(f"train.optimizer 'muon' is for full fine-tuning, not for adapter.method {method!r}")
        if method == "qlora" and self.train.parallel == "fsdp":
            raise ValueError(f"adapter.method {method!r}: its 4-bit weights cannot be shared out; train.parallel must be 'ddp'")
        if self.format.answers and self.decode.engine not in ("auto", "native", "transformers"):
            raise ValueError(
                f"decode.engine {self.decode.engine!r} writes texts of its own; format.answers needs 'native' or 'auto'"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that `seqtune fit` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a configuration file, apply overrides and validate the result.

    Args:
        path: YAML file, or `None` for the defaults.
        overrides: dotted key -> value; each replaces what the file says.

    Raises:
        ConfigError: names every wrong key with its value, what is allowed and the nearest valid name.

    Example:
        >>> load_config(overrides={"train.epochs": 5}).train.epochs
        5.0
    """
    content = opened(read_yaml_mapping(Path(path), "config") if path else {}, "mixture")
    if isinstance(content.get("model"), dict):  # whoever wrote a file cannot permit his own code to run on this machine
        content["model"].pop("trust_remote_code", None)
    for dotted, value in (overrides or {}).items():
        put(content, dotted, value)
        opened(content, "mixture")
    task = content.get("task")
    if task is not None:
        content = _with_task(content, str(task))
    return validate(Config, content)


def _with_task(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Take columns and format from a pack's task or a task file, except where the config sets them itself."""
    merged = dict(content)
    task = plugins.task_keys(name)
    columns = {key: task[key] for key in ("input", "output", "layout") if key in task}
    formatting = {key: task[key] for key in FormatConfig.model_fields if key in task}
    merged["data"] = columns | (content.get("data") or {})
    merged["format"] = formatting | (content.get("format") or {})
    merged["task"] = task.get("plugin")
    return merged
