"""Packs: what a package for one field (such as chemistry) can add to seqtune.

A pack declares what it has as Python entry points. Our own packs use the same ones:

| group | an entry is |
|---|---|
| `seqtune.sources` | a function with typer options; `seqtune data NAME` writes its table |
| `seqtune.tasks` | a `TaskPlugin`; `--task NAME` |
| `seqtune.metrics` | a class or function without parameters that returns `TaskMetrics` |
| `seqtune.verifiers` | a class or function without parameters that returns a `Verifier` |

A pack is imported only when one of its entries is asked for by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

from seqtune.errors import ConfigError, MissingDependencyError, did_you_mean
from seqtune.records import Example
from seqtune.yaml_files import read_yaml_mapping

# optional package -> the extra that brings it; what else a pack needs comes with the extra of the pack's name
EXTRAS = {
    "chemicals": "chem", "rdkit": "chem", "py2opsin": "chem", "openclatura": "chem", "ray": "ray", "optuna": "search",
    "bitsandbytes": "quant", "ctranslate2": "fast", "vllm": "vllm", "tensorboard": "track", "gguf": "gguf",
    "lm-eval": "bench-suites",
    "xllamacpp": "export", "onnxscript": "export", "onnxruntime": "export", "mlx-lm": "mlx",
    "openpyxl": "excel", "fastapi": "serve", "uvicorn": "serve", "prometheus-client": "serve",
}  # fmt: skip
Kind = Literal["sources", "tasks", "metrics", "verifiers"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says about one candidate answer.

    Attributes:
        status: the result in one word, such as `verified`, `mismatch`, `unparsed`, `not_checked`.
        verified: the candidate passed.
        detail: the evidence, such as the structure that a name stands for.
    """

    status: str
    verified: bool = False
    detail: str = ""


class Verifier(Protocol):
    """Checks answers without knowing the references.

    Example:
        class Parses:
            def verify(self, inputs, candidates):
                return [Verdict("verified", True) if c.isdigit() else Verdict("unparsed") for c in candidates]
    """

    def verify(self, inputs: Sequence[str], candidates: Sequence[str]) -> list[Verdict]:
        """One verdict per pair of input and candidate, in order; called with a whole batch at once."""
        ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """The values of a task's own metrics for every item.

    Attributes:
        values: metric name -> a value per item; `None` where the item does not count.
        columns: name -> a text per item, stored with the prediction.
        strata: name -> a label per item; scores are also computed for the items of each label.
    """

    values: Mapping[str, Sequence[float | None]]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    strata: Mapping[str, Sequence[str]] = field(default_factory=dict)


class TaskMetrics(Protocol):
    """A task's own metrics. A score is the mean over items, with a confidence interval.

    Attributes:
        primary: the most important value; it is shown first.
        signatures: value name -> how it is computed, with versions.
        against_reference: values that depend on nothing but prediction and reference; a verifier is evaluated with these.
    """

    primary: str
    signatures: Mapping[str, str]
    against_reference: Sequence[str]

    def judge(self, inputs: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> Judgement:
        """Judge every item. No text may make this raise."""
        ...

    def baselines(self, inputs: Sequence[str], training: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
        """Answers of other tools, to compare with the model's: name -> an answer per input, "" where the tool has none.

        Args:
            inputs: the inputs.
            training: (input, output) rows that the model was trained on; empty if they are not known.
        """
        ...


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is unusual about one input.

    Attributes:
        text: what the model reads instead of the input.
        status: "" for an ordinary input, else a word for what is unusual about it.
        refused: if true, the model is not asked and gives no answer.
    """

    text: str
    status: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class TaskPlugin:
    """A task as a pack declares it. Functions are named as `module:attribute` and imported when they are needed.

    Attributes:
        input: input column.
        output: output column.
        template: preset or instruction text.
        metrics: name in the group `seqtune.metrics`.
        verifier: name in the group `seqtune.verifiers`.
        inspect: function `Sequence[str] -> list[Inspection]` over inputs.
        readers: file ending -> function `Path -> Iterator[Example]`, for input files that are not tables.
        draw: function `(predictions, path) -> None` that draws inputs and answers.
        picture: function `(text) -> svg`, "" for a text that cannot be drawn.
        keys: name -> function `Sequence[Example] -> list[str]`, groups to split by.
        neighbours: function `(training, held_out) -> list[float]`, each held-out row's similarity to the nearest training row.
    """

    input: str
    output: str
    template: str = "plain"
    metrics: str | None = None
    verifier: str | None = None
    inspect: str | None = None
    readers: Mapping[str, str] = field(default_factory=dict)
    draw: str | None = None
    picture: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    neighbours: str | None = None


Inspector = Callable[[Sequence[str]], list[Inspection]]
Reader = Callable[[Path], Iterator[Example]]


def names(kind: Kind) -> list[str]:
    """All entries of a kind that are installed."""
    return sorted({entry.name for entry in entry_points(group=f"seqtune.{kind}")})


def find(kind: Kind, name: str) -> Any:
    """Import an entry.

    Raises:
        ConfigError: no installed pack has it.
        MissingDependencyError: the pack is there, a package that it needs is not.
    """
    entry: EntryPoint | None = next(iter(entry_points(group=f"seqtune.{kind}", name=name)), None)
    if entry is None:
        known = names(kind)
        raise ConfigError(
            f"there is no {kind.removesuffix('s')} {name!r}{did_you_mean(name, known)}; installed: {', '.join(known) or 'none'}"
        )
    return load(entry.value)


def task_keys(name: str) -> dict[str, Any]:
    """What a task file holds, or the same keys of a pack's task.

    Raises:
        ConfigError: there is no such file or task.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return read_yaml_mapping(Path(name), "task")
    pack = find("tasks", name)
    return {"input": pack.input, "output": pack.output, "template": pack.template, "plugin": name}


def load(reference: str, purpose: str | None = None) -> Any:
    """Import `module:attribute`.

    Args:
        reference: what to import.
        purpose: what needs it, for the error; default: the module.

    Raises:
        MissingDependencyError: a package that the module needs is not installed.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        pack = module.split(".")[1] if module.startswith("seqtune.") else module.split(".")[0]
        raise MissingDependencyError(package, EXTRAS.get(package, pack), purpose or module) from None
