"""A task: columns and template, one object for check, fit, predict and evaluate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from seqtune import plugins, runs
from seqtune.config import Config, validate
from seqtune.data.templates import Template
from seqtune.sections import DataConfig, FormatConfig, Layout
from seqtune.yaml_files import read_yaml_mapping


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
        system: text of the system turn of a chat.
        layout: how tables hold the pairs (`seqtune.data.layouts`).
        answers: the only answers there are, `None` for free text.
        ordered: they stand from low to high.
    """

    input: str
    output: str
    template: str
    target: str
    separator: str
    max_new_tokens: int | None = None
    plugin: str | None = None
    system: str | None = None
    layout: Layout = "auto"
    answers: tuple[str, ...] | None = None
    ordered: bool = False

    @classmethod
    def from_config(cls, config: Config) -> Task:
        """The task that a configuration spells out."""
        return cls._of(config.data, config.format, plugin=config.task)

    @classmethod
    def _of(cls, data: DataConfig, form: FormatConfig, max_new_tokens: int | None = None, plugin: str | None = None) -> Task:
        words = (form.template, form.target, form.separator)
        answers = tuple(a.strip() for a in form.answers) if isinstance(form.answers, list) else None
        return cls(data.input, data.output, *words, max_new_tokens, plugin, form.system, data.layout, answers, form.ordered)

    @classmethod
    def load(cls, path: Path) -> Task:
        """Read `task.yaml`.

        Raises:
            ConfigError: the file is missing or a key is wrong.
        """
        content = read_yaml_mapping(path, "task")
        limit = content.pop("max_new_tokens", None)
        plugin = content.pop("plugin", None)
        columns = {key: content.pop(key) for key in ("input", "output", "layout") if key in content}
        return cls._of(validate(DataConfig, columns), validate(FormatConfig, content), limit, plugin)

    def save(self, path: Path) -> None:
        """Write `task.yaml`, which `load` and the config key `task` read back."""
        content = asdict(self) | {"answers": list(self.answers) if self.answers else None}
        runs.write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

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
            FormatConfig(template=self.template, target=self.target, separator=self.separator, system=self.system)
        )

    def reading(self, settings: DataConfig) -> DataConfig:
        """How a table for this task is read: its columns, and the other settings as they are.

        A template that names {instruction} puts Alpaca's columns together itself.
        """
        layout = "pairs" if self.layout == "auto" and "instruction" in self.rendering.source_columns else self.layout
        return settings.model_copy(update={"input": self.input, "output": self.output, "layout": layout})
