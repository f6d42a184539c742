"""Where a base model lies: a hub id, a local folder, a run folder or `builtin:NAME`; nothing is loaded, torch is not needed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from seqtune.config import ModelConfig
from seqtune.errors import ModelError, did_you_mean

ADAPTER_SETTINGS = "adapter.json"  # in the model folder of a run that trained an adapter


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
    """Folder or hub id that a model is loaded from.

    Raises:
        ModelError: there is no such folder, or it holds no model.
    """
    if config.name.startswith("builtin:"):
        return str(builtin_path(config.name.removeprefix("builtin:")))
    path = Path(config.name).expanduser()
    if path.is_dir():
        if (path / "model" / "config.json").exists():  # a run folder
            return str(path / "model")
        if not (path / "config.json").exists():
            raise ModelError(f"{config.name!r} is a folder without config.json; it holds no Hugging Face model")
        return str(path)
    if path.is_absolute() or config.name.startswith((".", "~")):
        raise ModelError(f"the model folder {config.name!r} does not exist")
    return config.name


def local_folder(config: ModelConfig) -> Path | None:
    """The folder that holds the model, `None` for a hub id."""
    path = Path(location(config))
    return path if path.is_dir() else None


def holds_adapter(run: Path) -> bool:
    """True for the folder of a run that trained an adapter."""
    return (run / "model" / ADAPTER_SETTINGS).exists()
