"""Task bundles and collections: what there is, and what their prompts look like; behind `seqtune tasks` and `seqtune check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune import plugins
from seqtune.config import validate
from seqtune.data.asking import Asker, MixedTask
from seqtune.data.bundles import FILE, Bundle, bundle_of, kind_of, read_bundle
from seqtune.data.collections import is_collection, read_collection
from seqtune.data.forms import CHAINS, INVERSIONS, ORDERS, STYLES, Form
from seqtune.data.mixture import bundles_of, open_mixture
from seqtune.errors import DataError, SeqtuneError
from seqtune.sections import MixtureConfig
from seqtune.yaml_files import opened

MOST_TEMPLATES = 20  # that `rendered` shows


@dataclass(frozen=True, slots=True)
class Listed:
    """A task that can be mixed.

    Attributes:
        name: by which a mixture takes it.
        format: bundle, pack, or the collection's.
        num_templates: of the task.
        num_rows: of its table; `None` where there is none here.
        cluster: tasks of one kind.
        about: in a few words.
    """

    name: str
    format: str
    num_templates: int
    num_rows: int | None
    cluster: str | None
    about: str


def installed() -> list[Listed]:
    """The tasks of the packs that are installed."""
    return [_listed(name, "pack", read_bundle(name)) for name in plugins.names("tasks")]


def listed(name: str) -> tuple[list[Listed], dict[str, str]]:
    """The tasks of a bundle, a mixture or a collection, and what could not be read, with the reason.

    Raises:
        ConfigError: there is nothing of that name.
    """
    kind, path = kind_of(name), Path(name)
    if kind == "mixture":
        config = validate(MixtureConfig, opened({"mixture": name}, "mixture")["mixture"])
        return [_listed(b.name, "bundle", b) for b in bundles_of(config)], {}
    if "#" in name or not path.exists() or (kind == "bundle" and not _holds_many(path)):
        return [_listed(name, "bundle", read_bundle(name))], {}
    found = read_collection(path)
    tasks, unreadable = [], dict(found.unreadable)
    for task, keys in found.tasks.items():
        try:
            tasks.append(_listed(task, found.formats[task], bundle_of(keys, task, found.folders[task])))
        except (SeqtuneError, OSError) as error:  # a name can be none that a file may have
            unreadable[task] = str(error)
    return tasks, unreadable


def _holds_many(path: Path) -> bool:
    """True for a collection, false for a bundle of our own."""
    return not (path / FILE).exists() if path.is_dir() else is_collection(path)


def _listed(name: str, kind: str, bundle: Bundle) -> Listed:
    rows = None
    if bundle.data.path and Path(bundle.data.path).exists():
        rows = sum(map(len, _opened(bundle).sides.values()))
    return Listed(name, kind, len(bundle.templates), rows, bundle.cluster, bundle.about)


def _opened(bundle: Bundle) -> MixedTask:
    """The bundle as the only task of a mixture."""
    return open_mixture(MixtureConfig(tasks={bundle.name: bundle.model_dump(exclude_unset=True)}), [])[0]


def rendered(name: str) -> dict[str, Any]:
    """A bundle's prompts: the first row in each template, and in each form that the task allows.

    Raises:
        ConfigError: there is no such bundle.
        DataError: its table cannot be read.
    """
    bundle = read_bundle(name)
    result = {"name": bundle.name, "templates": len(bundle.templates), "cluster": bundle.cluster, "metric": bundle.metric}
    if not bundle.data.path:
        shown = [{"form": "template", "source": w.source, "target": w.target} for w in bundle.wordings[:MOST_TEMPLATES]]
        columns = list(dict.fromkeys(column for w in bundle.wordings for column in w.columns))
        return result | {"splits": None, "columns": columns, "examples": shown}
    task = _opened(bundle)
    asker = Asker(task, 0, "\n", MixtureConfig(tasks=["-"]).max_characters, testing=True)
    rows, shown = task.sides["train"], []
    for number, (label, form) in enumerate(_forms(task)):
        try:
            source, target, _ = asker.ask(rows[number % len(rows)], form, number)
        except DataError as error:
            shown.append({"form": label, "source": "", "target": "", "error": str(error)})
        else:
            shown.append({"form": label, "source": source, "target": target})
    return result | {"splits": {side: len(table) for side, table in task.sides.items()}, "examples": shown}


def _forms(task: MixedTask) -> list[tuple[str, Form]]:
    """All templates, and with the first of them all other forms."""
    bundle = task.bundle
    forms = [(f"template {i + 1}", Form(i)) for i in range(min(MOST_TEMPLATES, len(bundle.wordings)))]
    if bundle.words or any(w.choices for w in bundle.wordings):
        forms += [(f"answers listed, style {i + 1}", Form(style=i)) for i in range(len(STYLES))]
    if bundle.chain:
        forms += [(f"chain of thought {i + 1}", Form(chain=i)) for i in range(len(CHAINS))]
    forms += [(f"inverted {i + 1}", Form(inversion=i)) for i in range(len(ORDERS if bundle.chain else INVERSIONS))]
    return [*forms, ("2 solved examples", Form(num_shots=2))]
