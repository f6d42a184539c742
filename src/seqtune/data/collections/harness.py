"""lm-evaluation-harness: a task's YAML, where it is plain, which is: without Python code.

Format: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md. A text is Jinja or names a column.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from seqtune.data.collections.documents import Code

SPLITS = {"training_split": "path", "validation_split": "validation_path", "test_split": "test_path"}
READ = ("json", "csv", "parquet")
METRICS = {"acc": "exact_match", "exact_match": "exact_match", "mcc": "matthews", "bleu": "bleu_13a", "rougeL": "rougeL"}


class NotPlainError(ValueError):
    """Why a task cannot be used."""


def is_one(content: dict[str, Any]) -> bool:
    """True for a file of this format, or a part of one that others include."""
    return any(key in content for key in ("doc_to_text", "dataset_path", "group", "include"))


def bundle(content: dict[str, Any], included: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys of a bundle, by the task's name; none for a file that only others include.

    Args:
        content: of the file.
        included: reads a file that it includes.

    Raises:
        NotPlainError: it is no task, or needs Python code.
    """
    for _ in range(10):
        if "include" not in content:
            break
        content = {**included(str(content.pop("include"))), **content}
    if "group" in content and "doc_to_text" not in content:
        raise NotPlainError("a group of tasks, which has no rows of its own")
    if isinstance(content.get("task"), str):
        return {content["task"]: _keys(content)}
    if "doc_to_text" in content:
        raise NotPlainError("it has no name (`task`): a part that others include")
    return {}


def _keys(content: dict[str, Any]) -> dict[str, Any]:
    for key, value in content.items():
        if isinstance(value, Code):
            raise NotPlainError(f"{key} is Python code ({value.tag})")
    for key in ("class", "use_prompt"):
        if content.get(key):
            raise NotPlainError(f"it needs {key}, which is no plain task")
    asked, answered, offered = (content.get(key) for key in ("doc_to_text", "doc_to_target", "doc_to_choice"))
    if not isinstance(asked, str) or answered is None:
        raise NotPlainError("it has no doc_to_text or no doc_to_target")
    choices = None if offered is None else _choices(offered)
    template = {
        "template": str(content.get("description") or "") + _text(asked),
        "target": _target(str(answered), choices is not None),
        "choices": choices,
    }
    metrics = [str(m.get("metric")) for m in content.get("metric_list") or [] if isinstance(m, dict)]
    return {
        "about": f"lm-evaluation-harness, {content.get('dataset_path')}",
        "cluster": content["tag"] if isinstance(content.get("tag"), str) else None,
        "language": "jinja",
        "templates": [template],
        "data": _tables(content),
        "metric": next((METRICS[m] for m in metrics if m in METRICS), "exact_match"),
    }


def _text(given: str) -> str:
    """A column's name as Jinja; other texts are Jinja already."""
    return f"{{{{ {given} }}}}" if re.fullmatch(r"\w+", given) and not given.isdigit() else given


def _target(given: str, has_choices: bool) -> str:
    """The answer; with choices a number is a place among them."""
    if not has_choices:
        return _text(given)
    said = "{% set said %}" + _text(given) + "{% endset %}{% set said = said|trim %}"
    return said + "{{ answer_choices[said|int] if said.isdigit() and said not in answer_choices else said }}"


def _choices(given: Any) -> str:
    """The answers as one Jinja text, parted by `|||`."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, list):
        return " ||| ".join("{% raw %}" + str(each) + "{% endraw %}" for each in given)
    single = re.fullmatch(r"\s*\{\{(.*)\}\}\s*", str(given), re.DOTALL)
    if single is None and not re.fullmatch(r"\w+", str(given)):
        raise NotPlainError(f"doc_to_choice is no list and no single expression: {str(given)[:60]!r}")
    return "{{ (" + (single[1] if single else str(given)) + ")|join(' ||| ') }}"


def _tables(content: dict[str, Any]) -> dict[str, Any]:
    """The data files of each split, where the task names files and no data set of the hub."""
    files = (content.get("dataset_kwargs") or {}).get("data_files")
    if content.get("dataset_path") not in READ or not files:
        return {}
    if not isinstance(files, dict):
        files = {"train": files}
    named = {key: files.get(content.get(split) or "") for split, key in SPLITS.items()}
    chosen = {key: file[0] if isinstance(file, list) else file for key, file in named.items() if file}
    if chosen and "path" not in chosen:  # a task that is only for tests
        chosen = {"path": next(iter(chosen.values()))}
    return chosen
