"""A task: columns and template, one object for check, fit, predict and evaluate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from seqtune import plugins, runs
from seqtune.config import Config, DataConfig, FormatConfig, read_yaml_mapping, validate
from seqtune.data.templates import Template


@dataclass(frozen=True, slots=True)
class Task:
    """What goes in, what comes out, and how it is put into words.

    Attributes:
        input: name of the input column.
        output: name of the output column.
        template: preset or instruction text with {input}.
        target: target text with {output}.
        separator: text between instruction and answer.
        max_new_tokens: decoding limit learnt from the training targets, `None` before training.
        plugin: the pack's task that brings metrics, verifier and inspection; `None` for a plain text task.
    """

    input: str
    output: str
    template: str
    target: str
    separator: str
    max_new_tokens: int | None = None
    plugin: str | None = None

    @classmethod
    def from_config(cls, config: Config) -> Task:
        """The task that a configuration spells out."""
        form = config.format
        return cls(config.data.input, config.data.output, form.template, form.target, form.separator, plugin=config.task)

    @classmethod
    def load(cls, path: Path) -> Task:
        """Read `task.yaml`.

        Raises:
            ConfigError: the file is missing or a key is wrong.
        """
        content = read_yaml_mapping(path, "task")
        limit = content.pop("max_new_tokens", None)
        plugin = content.pop("plugin", None)
        columns = {key: content.pop(key) for key in ("input", "output") if key in content}
        data = validate(DataConfig, columns)
        form = validate(FormatConfig, content)
        return cls(data.input, data.output, form.template, form.target, form.separator, limit, plugin)

    def save(self, path: Path) -> None:
        """Write `task.yaml`, which `load` and the config key `task` read back."""
        runs.write_text(path, yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True))

    @property
    def pack(self) -> plugins.TaskPlugin | None:
        """What the pack declares about this task.

        Raises:
            ConfigError: the pack is not installed.
        """
        return plugins.find("tasks", self.plugin) if self.plugin else None

    @property
    def rendering(self) -> Template:
        """The parsed template."""
        return Template.from_config(
            FormatConfig(template=self.template, target=self.target, separator=self.separator, inversion=0.0)
        )
