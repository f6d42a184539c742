"""A run as a folder that the hub understands, and the upload of it, which nothing does unasked.

The folder is a Hugging Face folder with the merged model at its root, the task and the search beside it, and a card with every
score. So `seqtune predict OWNER/NAME` answers as the run does, and so does plain transformers. It holds no row of the data, and
no path of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from seqtune import folders
from seqtune.config import Config, load_config
from seqtune.data.tasks import Task
from seqtune.errors import ModelError, RunError, near_path
from seqtune.models.location import local_folder, origin
from seqtune.procedures.bases import known_bases
from seqtune.procedures.export import write_merged
from seqtune.procedures.handover import write_beside
from seqtune.report.hub_card import hub_card
from seqtune.runs import is_complete, read_json, write_json
from seqtune.sections import ModelConfig

SPDX = re.compile(r"^[A-Za-z0-9.+-]+$")


def on_hub(target: str) -> str | None:
    """The hub id that a target stands for, `None` for a folder.

    A target is a folder if it is there, if its parent folder is, or if it is written as a path (`./x`, `/x`, `~/x`, `x`).

    Raises:
        RunError: it is neither.

    Example:
        >>> on_hub("owner/name"), on_hub("./name")
        ('owner/name', None)
    """
    path = Path(target).expanduser()
    if path.is_absolute() or target.startswith((".", "~")) or path.exists() or path.parent.is_dir():
        return None
    try:
        validate_repo_id(target)
    except HFValidationError:
        raise RunError(
            f"{target!r} is neither a folder, as {str(path.parent)!r} is not there, nor a name that the hub knows: write "
            "OWNER/NAME, in letters, digits, '-', '_' and '.'"
        ) from None
    return target


def write(run: Path, folder: Path, name: str, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """Write the folder.

    Args:
        run: a finished run.
        folder: where to write.
        name: what the card calls it: the hub id, or the folder.
        trusted: models whose own Python code may run, by name.

    Returns:
        `files`, path -> bytes, and the base's `licence`, `None` where it is not known.

    Raises:
        RunError: the run is not finished, or the folder is in the way.
    """
    if not is_complete(run):
        raise RunError(f"{str(run)!r} is no finished run{near_path(run)}; finish it with `seqtune fit ... --resume`")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{str(folder)!r} exists and is not empty; choose another")
    config, task = load_config(run / "config.yaml"), Task.load(run / "task.yaml")
    known = licence(config)
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").exists() else None
    data = read_json(run / "data.json")
    with folders.writing(folder) as hidden:
        encoder = write_merged(run, hidden, ModelConfig(name=str(run), trust_remote_code=tuple(trusted)), task, whole=False)
        write_beside(task, config.decode, hidden)
        write_json(hidden / "data.json", data)
        if metrics:
            write_json(hidden / "metrics.json", metrics)
        says = encoder.tokenizer.chat_template is not None
        card = hub_card(name, config, data, read_json(run / "outcome.json"), metrics, known, takes_messages=says)
        (hidden / "README.md").write_text(card, encoding="utf-8")
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"files": files, "licence": known}


def upload(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload a folder to the hub, with the login that this machine has there.

    Args:
        folder: what `write` has written.
        name: the hub id; made as a private repository if it is not there.
        public: make it as a public one.

    Returns:
        Its address.

    Raises:
        RunError: the hub cannot be reached, or refuses.
    """
    hub = HfApi()
    try:
        place = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by seqtune")
    except Exception as error:  # whatever the HTTP library of the hub's client raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{name!r} was not uploaded: {reason} (log in with: hf auth login)") from None
    return str(place)


def licence(config: Config) -> str | None:
    """The licence of a run's base as its file, our list or its card says; `None` where none of them is here or says it."""
    named = {base.name: base.licence.partition(",")[0] for base in known_bases()}
    if config.model.name in named or config.model.init == "random":
        return named.get(config.model.name, "").lower() or None
    try:
        folder, noted = local_folder(config.model), origin(config.model).get("licence")
    except ModelError:  # the base has gone since; the run answers without it
        return None
    if noted:
        return str(noted).lower()
    card = folder / "README.md" if folder else _cached_card(config.model.name)
    if card is None or not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"\A---\n.*?^license: *(\S+) *$.*?^---$", text, re.DOTALL | re.MULTILINE)
    return found[1].lower() if found and SPDX.match(found[1]) else None


def _cached_card(name: str) -> Path | None:
    try:
        found = try_to_load_from_cache(name, "README.md")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
