"""How runs are named: by a digest of what decides their weights.

That is the settings, and beside them:

- the contents of the tables,
- the contents of a local base: weights, configuration and tokenizer (a base of the hub goes by its id and `model.revision`),
- seqtune's version, and the modules that fill in the settings that are left open (`DEFAULTS`).

Other modules are not read, the version stands for them: if every edit gave all runs a new name, nothing would be kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from seqtune import runs
from seqtune.config import Config
from seqtune.data.mixture import bundles_of
from seqtune.errors import ModelError
from seqtune.models.location import base_of, gguf_file, holds_adapter, local_folder
from seqtune.sections import ModelConfig

PACKAGE = Path(str(resources.files("seqtune")))
DEFAULTS = ("training/defaults.py", "tokens/preparation.py")
BASE_FILES = (".jinja", ".json", ".model", ".py", ".safetensors", ".txt")


def digest(content: Any) -> str:
    """Twelve characters that change with the content."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def ingredients(config: Config) -> list[Any]:
    """What decides a run's weights beside its settings: digests of files, and seqtune's version and defaults."""
    bundles = bundles_of(config.mixture) if config.mixture else []
    data = config.data
    names = [name for b in bundles for name in b.files] or [data.path, data.validation_path, data.test_path]
    tables = [*map(_table, names), *(bundle.model_dump() for bundle in bundles)]
    defaults = [file_digest(PACKAGE / name) for name in DEFAULTS]
    return [tables, _base(config.model), metadata.version("seqtune"), defaults]


def _table(name: str | None) -> str | None:
    path = Path(name) if name else None
    return file_digest(path) if path and path.is_file() else name


def _base(model: ModelConfig) -> list[str]:
    """Names and digests of a local base's files; of an adapter's run also those of the base below it."""
    try:
        file = gguf_file(model.name)
        if file is not None:
            return [f"{file.name} {file_digest(file)}"]
        folder = local_folder(model)
        run = folder.parent if folder else None
        below = _base(base_of(run).model) if run and holds_adapter(run) else []
    except ModelError:  # said when the point is run
        return []
    if folder is None:
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix in BASE_FILES and path.is_file())
    if run and holds_adapter(run):
        files += [path for path in (run / "config.yaml", run / runs.VOCABULARY) if path.exists()]
    return [f"{path.name} {file_digest(path)}" for path in files] + below


def file_digest(path: Path) -> str:
    """SHA-256 of a file; one that has not changed since is not read again."""
    status = path.stat()
    return _file_digest(path.resolve(), status.st_mtime_ns, status.st_size)


@functools.cache
def _file_digest(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
