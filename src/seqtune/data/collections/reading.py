"""A file, a folder or an archive of tasks -> the keys of bundles, by name, and what could not be read."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqtune.data.archives import BROKEN
from seqtune.data.collections import flan, harness, natural_instructions, promptsource
from seqtune.data.collections.documents import ARCHIVES, documents, load
from seqtune.data.wordings import wording_of
from seqtune.errors import ConfigError


@dataclass(slots=True)
class Collection:
    """What a collection holds.

    Attributes:
        tasks: name -> a bundle's keys.
        formats: name -> the format that it was written in.
        folders: name -> what its tables are relative to.
        unreadable: a file, or a task and its template -> why it cannot be used.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def is_collection(path: Path) -> bool:
    """True for what `read_collection` reads, false for a bundle of our own."""
    if path.is_dir() or path.suffix == ".json" or path.name.endswith(ARCHIVES):
        return True
    content = load(path.name, path.read_bytes())
    return isinstance(content, dict) and _format_of(content) in ("promptsource", "lm-evaluation-harness")


def read_collection(path: Path) -> Collection:
    """All tasks of a collection.

    Raises:
        ConfigError: it is no archive or folder, or holds no task.
    """
    found = Collection()
    try:
        for file, content in documents(path):
            _read(file, content, path, found)
    except (OSError, tarfile.TarError, *BROKEN) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from None
    for name in list(found.tasks):
        _check(name, found)
    if not found.tasks and not found.unreadable:
        raise ConfigError(f"{str(path)!r} holds no YAML or JSON file, so there are no tasks in it")
    return found


def _format_of(content: dict[str, Any]) -> str | None:
    formats: dict[str, Callable[[dict[str, Any]], bool]] = {
        "promptsource": promptsource.is_one,
        "natural instructions": natural_instructions.is_one,
        "lm-evaluation-harness": harness.is_one,
        "bundle": lambda keys: "templates" in keys or "template" in keys,
        "flan": flan.is_one,
    }
    return next((name for name, is_one in formats.items() if is_one(content)), None)


def _read(file: str, content: Any, path: Path, found: Collection) -> None:
    """Add the tasks of one document."""
    kind = _format_of(content) if isinstance(content, dict) else None
    if isinstance(content, ValueError):
        found.unreadable[file] = str(content)
        return
    beside, root = (path / file, path) if path.is_dir() else (path, path.parent)
    try:
        match kind:
            case "promptsource":
                made = promptsource.bundle(content)
            case "flan":
                made = flan.bundle(content)
            case "natural instructions":
                made = natural_instructions.bundle(content, beside.name)
            case "lm-evaluation-harness":
                made = harness.bundle(content, lambda name: _included(beside.parent / name, root))
            case "bundle":
                made = {content.get("name") or (beside.parent.name if beside.name == "task.yaml" else beside.stem): content}
            case _:
                raise ValueError("in none of the known formats")
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        found.unreadable[file] = str(error)
        return
    for name, keys in made.items():
        unique = name if name not in found.tasks else f"{name} ({file})"
        found.tasks[unique], found.formats[unique], found.folders[unique] = keys, str(kind), beside.parent


def _included(path: Path, root: Path) -> dict[str, Any]:
    if not path.resolve().is_relative_to(root.resolve()):
        raise harness.NotPlainError(f"it includes {path.name} from outside of {str(root)!r}; name the folder that holds both")
    try:
        content = load(path.name, path.read_bytes())
    except OSError:
        raise harness.NotPlainError(f"it includes {path.name}, which is not there") from None
    if not isinstance(content, dict):
        raise harness.NotPlainError(f"it includes {path.name}, which holds no keys")
    return content


def _check(name: str, found: Collection) -> None:
    """Take out the templates that cannot be used; a task without any goes too."""
    keys, good = found.tasks[name], []
    for number, template in enumerate(keys["templates"] if "templates" in keys else [keys["template"]], start=1):
        try:
            wording_of(template, keys.get("language", "braces"), keys.get("target", "{output}"))
        except ConfigError as error:
            own = template.get("name") if isinstance(template, dict) else None
            found.unreadable[f"{name}: {own or f'template {number}'}"] = str(error)
        else:
            good.append(template)
    if good:
        found.tasks[name] = {k: v for k, v in keys.items() if k != "template"} | {"templates": good}
    else:
        del found.tasks[name]
