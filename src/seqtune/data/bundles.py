"""A task bundle: a table, and how its rows are asked and scored; a folder, a YAML file or part of a collection.

A bundle holds what `task.yaml` of a run may hold, and more: the table, several templates, a pool of solved examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from seqtune import plugins
from seqtune.config import Config
from seqtune.data.collections import is_collection, is_json_object, natural_instructions, read_collection
from seqtune.data.places import is_saved
from seqtune.data.sources import read_examples
from seqtune.data.table import Table
from seqtune.data.wordings import Wording, wording_of
from seqtune.errors import ConfigError, did_you_mean, near_path
from seqtune.records import Example, Rejected
from seqtune.sections import DataConfig, FormatConfig, PositiveInt, Section
from seqtune.yaml_files import read_yaml_mapping, validate

FILE = "task.yaml"
MOVED = {"input": "data", "output": "data", "layout": "data", "path": "data"}  # keys that may stand outside their section


class WordingConfig(Section):
    """A template with more than its question."""

    name: str = ""
    template: str
    target: str | None = Field(default=None, description="default: the bundle's")
    choices: str | None = Field(default=None, description="Jinja: the answers, parted by |||; default: the bundle's")
    lists_choices: bool = Field(default=False, description="the template itself lists the answers")
    original: bool = Field(default=True, description="false: it asks for something else, and is for training alone")


class Bundle(Section):
    """The content of a bundle's YAML file."""

    name: str = ""
    about: str = ""
    cluster: str | None = Field(default=None, description="tasks of one kind; held out together")
    data: DataConfig = Field(default_factory=DataConfig)
    where: dict[str, str] = Field(
        default_factory=dict, description="column -> value: the rows of the table that are this task's"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="a template's name for a column -> the table's")
    templates: list[str | WordingConfig] = Field(default=["{input}"], min_length=1, description="questions with {columns}")
    target: str = Field(default="{output}", description="answer with {columns}")
    language: Literal["braces", "jinja"] = Field(default="braces", description="what the templates are written in")
    answers: list[str] | dict[str, str] | None = Field(
        default=None, description="the only answers there are; or what the table says -> what the model shall say"
    )
    ordered: bool = Field(default=False, description="`answers` stand from low to high")
    chain: str | None = Field(default=None, description="column with the reasoning that leads to the answer")
    pool: str | None = Field(default=None, description="table of solved examples; default: the training rows")
    metric: str = Field(default="exact_match", description="the score that stands for the task")
    plugin: str | None = Field(default=None, description="a pack's task that brings metrics and verifier")
    max_new_tokens: PositiveInt | None = Field(default=None, description="limit of an answer, in tokens")
    _wordings: list[Wording] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _answers(self) -> Bundle:
        FormatConfig(answers=self.words or None, ordered=self.ordered)  # the same rules hold
        for key in ("max_input_characters", "max_output_characters"):
            if getattr(self.data, key):
                raise ValueError(f"data.{key} of a task: prompts are measured when they are made; set it beside the mixture")
        return self

    @property
    def words(self) -> list[str]:
        """The answers as the model says them; empty for free text."""
        return [*dict.fromkeys((self.answers or {}).values() if isinstance(self.answers, dict) else self.answers or ())]

    @property
    def wordings(self) -> list[Wording]:
        """The templates, checked.

        Raises:
            ConfigError: one cannot be read.
        """
        if self._wordings is None:
            given = [t if isinstance(t, str) else t.model_dump() for t in self.templates]
            self._wordings = [wording_of(each, self.language, self.target) for each in given]
        return self._wordings

    @property
    def reading(self) -> DataConfig:
        """How its table is read. Where questions are spread over columns, any of these may stand for the input."""
        given = self.data.input if "input" in self.data.model_fields_set else None
        columns = [column for wording in self.wordings for column in wording.columns if column != self.data.output]
        name = given or next(iter(columns), self.data.input)
        return self.data.model_copy(update={"input": self.columns.get(name, name)})

    @property
    def files(self) -> list[str | None]:
        """The names of its tables, `None` for those that it does without."""
        return [self.data.path, self.data.validation_path, self.data.test_path, self.pool]

    def fields(self, example: Example) -> dict[str, str]:
        """A row's columns, and `input` and `output`; the answer in the words that the model shall use."""
        said = example.output or ""
        if isinstance(self.answers, dict):
            said = self.answers.get(said, said)
        renamed = {name: example.fields.get(column, "") for name, column in self.columns.items()}
        return {**example.fields, **renamed, "input": example.input, "output": said}

    def chain_of(self, example: Example) -> str:
        """The row's reasoning, "" without any."""
        return example.fields.get(self.chain or "", "").strip()


def bundle_of(content: dict[str, Any], name: str, folder: Path, said: str = "") -> Bundle:
    """A bundle from the content of its file.

    Args:
        content: its keys; those of a `task.yaml` too.
        name: what it is called if it does not say so itself.
        folder: what the names of its tables are relative to.
        said: where it was written, for messages, such as `mixture.tasks.rte.`.

    Raises:
        ConfigError: a key is wrong; all are named.
    """
    given = content.get("data") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"{said}data = {str(given)[:60]!r}: it must be a mapping of keys, such as {{path: rows.csv}}")
    content = {**content, "data": dict(given)}
    for key, section in MOVED.items():
        if key in content:
            content[section].setdefault(key, content.pop(key))
    if isinstance(content.get("template"), str):
        content.setdefault("templates", [content.pop("template")])
    for key in ("separator", "system"):  # of a run's task.yaml: a mixture has one for all tasks
        content.pop(key, None)
    for place, key in (
        (content["data"], "path"),
        (content["data"], "validation_path"),
        (content["data"], "test_path"),
        (content, "pool"),
    ):
        if isinstance(place.get(key), str):
            place[key] = beside(place[key], folder)
    content["name"] = content.get("name") or name
    bundle: Bundle = validate(Bundle, content, said)
    _ = bundle.wordings  # reads the templates, so that a mistake in one shows here
    return bundle


def beside(name: str, folder: Path) -> str:
    """A name of a file as it is found from here; hub addresses and whole paths stay."""
    return name if name.startswith("hf://") or not str(folder) else str(folder / Path(name).expanduser())


def read_bundle(name: str, folder: Path = Path()) -> Bundle:
    """Find a bundle by its name.

    Args:
        name: a folder with a `task.yaml`, a YAML file, `FILE#NAME` of a collection, or a pack's task.
        folder: what a relative name starts from.

    Raises:
        ConfigError: there is none of that name, or it cannot be read; says why.
    """
    file, _, part = name.partition("#")
    path = Path(beside(file, folder))
    if path.is_dir() and (path / FILE).exists():
        path /= FILE
    if not path.exists():
        return _of_pack(name, path)
    if not is_collection(path) and not part:
        return bundle_of(
            read_yaml_mapping(path, "task bundle"), path.parent.name if path.name == FILE else path.stem, path.parent
        )
    found = read_collection(path)
    if len(found.tasks) == 1 and not part:
        part = next(iter(found.tasks))
    if part not in found.tasks:
        reason = found.unreadable.get(part)
        raise ConfigError(
            f"{name!r}: {reason}"
            if reason
            else f"{str(path)!r} is a collection of {len(found.tasks):,} tasks; name one with "
            f"{path.name}#NAME, such as {path.name}#{next(iter(found.tasks), 'NAME')}{did_you_mean(part, found.tasks)}"
        )
    return bundle_of(found.tasks[part], part, found.folders[part])


def kind_of(name: str) -> Literal["mixture", "bundle", "other"]:
    """What a name stands for where a table or a settings file may stand, too."""
    path = Path(name.partition("#")[0])
    if is_saved(path):  # a table too
        return "other"
    if path.is_dir() or "#" in name or (not path.exists() and name in plugins.names("tasks")):
        return "bundle"
    if path.suffix == ".json" and path.exists():
        return "bundle" if is_json_object(path) else "other"
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return "other"
    if is_collection(path):
        return "bundle"
    keys = read_yaml_mapping(path, "file").keys()
    if "tasks" in keys:
        return "mixture"
    return "bundle" if keys & ({*Bundle.model_fields, *MOVED, "template"} - {*Config.model_fields}) else "other"


def read_rows(name: str, data: DataConfig) -> tuple[Table, list[Rejected]]:
    """A bundle's rows: of a table, or of a task of Natural Instructions, which holds its own.

    Raises:
        DataError: they cannot be read.
    """
    if is_json_object(Path(name.partition("#")[0])):
        return natural_instructions.rows(name), []
    return read_examples(name, data)


def _of_pack(name: str, path: Path) -> Bundle:
    """The task that a pack declares: a `TaskPlugin`, or the path of a bundle."""
    if name not in plugins.names("tasks"):
        known = ", ".join(plugins.names("tasks"))
        raise ConfigError(
            f"there is no task bundle {name!r}: {str(path)!r} is neither a folder with a {FILE} nor a file{near_path(path)}, "
            f"and no installed pack has a task of that name ({known})"
        )
    found = plugins.find("tasks", name)
    if not isinstance(found, plugins.TaskPlugin):
        return read_bundle(str(found))
    return bundle_of(
        {"data": {"input": found.input, "output": found.output}, "templates": [found.template], "plugin": name}, name, Path()
    )
