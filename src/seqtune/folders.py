"""Folders that seqtune makes: known by a marker file, so that nothing of anybody else's is ever replaced or removed."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import psutil

from seqtune.errors import RunError

# what seqtune, transformers, CTranslate2 and TensorBoard write into the folders that seqtune makes in a run
INSIDE = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "adapter.json", "adapter_config.json", "state.json", "model.bin", "vocabulary.json", "metrics.json", "predictions.jsonl",
    "rejected.jsonl", "task.yaml", "decode.json", "study.json", "report.html", "log.jsonl", "events.out.tfevents.*",
    "hparams.yml", ".seqtune-evaluation",
)  # fmt: skip
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of folder that seqtune makes.

    Attributes:
        name: what messages call it.
        marker: the file that says so; `create` writes it.
        artefacts: names or patterns of everything that seqtune writes into it, in the order in which it is removed.
        remedy: what to do if there is one already.
    """

    name: str
    marker: str
    artefacts: tuple[str, ...]
    remedy: str


def check_free(folder: Path, kind: Kind, *, reuse: bool) -> None:
    """Refuse a folder that is in the way, before any work is done.

    Args:
        folder: where seqtune is to write.
        kind: what it is to become.
        reuse: one of this kind may be there already.

    Raises:
        RunError: it is a file, holds something else, or holds one of its kind and `reuse` is off.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file; choose another --out")
    if not is_ours(folder, kind):
        if any(folder.iterdir()):
            raise RunError(
                f"{str(folder)!r} is not empty, and it is no {kind.name} that seqtune made (there is no file "
                f"{kind.marker} in it); choose another --out"
            )
    elif artefacts(folder, kind) and not reuse:
        raise RunError(f"{str(folder)!r} holds a {kind.name} already; {kind.remedy}")


def cache(kind: str) -> Path:
    """Where things are kept that can be made again: in `$SEQTUNE_CACHE`, else in the user's cache folder."""
    base = os.environ.get("SEQTUNE_CACHE")
    return (Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "seqtune") / kind


def create(folder: Path, kind: Kind) -> None:
    """Make a folder, known as ours from then on; one that is there already only gets its marker."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_ours(folder, kind):
        text = f"seqtune made this folder ({kind.name}). It replaces and removes its own files in it and leaves others alone.\n"
        (folder / kind.marker).write_text(text, encoding="utf-8")
        sync(folder)


def is_ours(folder: Path, kind: Kind) -> bool:
    """True if `create` made this folder."""
    return (folder / kind.marker).is_file()


def artefacts(folder: Path, kind: Kind) -> list[Path]:
    """What seqtune has written into a folder, in the order in which it is removed."""
    return [path for pattern in kind.artefacts for path in sorted(folder.glob(pattern))]


def written(artefact: Path) -> list[Path]:
    """The files of an artefact: itself, or what seqtune writes into such a folder; links are not followed."""
    if artefact.is_symlink() or not artefact.is_dir():
        return [artefact]
    inside = [Path(parent) / name for parent, _, names in os.walk(artefact) for name in sorted(names)]
    return [path for path in inside if any(fnmatch(path.name, pattern) for pattern in INSIDE)]


def foreign(folder: Path, kind: Kind) -> list[str]:
    """Paths in a folder that seqtune did not write."""
    ours = artefacts(folder, kind)
    names = {kind.marker, *(path.name for path in ours)}
    found = [p for p in folder.iterdir() if p.name not in names and _writer(p, kind) is None]
    for top in (path for path in ours if path.is_dir() and not path.is_symlink()):
        known = set(written(top))
        found += [p for parent, _, files in os.walk(top) for name in files if (p := Path(parent) / name) not in known]
    return sorted(str(path.relative_to(folder)) for path in found)


def clear(folder: Path, kind: Kind) -> None:
    """Remove what seqtune wrote into a folder of its own; the marker and foreign files stay."""
    assert is_ours(folder, kind)
    sweep(folder, kind)
    for artefact in artefacts(folder, kind):
        _take_away(artefact)


def remove(folder: Path, kind: Kind) -> None:
    """`clear` a folder, and remove it too unless foreign files stay in it."""
    clear(folder, kind)
    (folder / kind.marker).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def sweep(folder: Path, kind: Kind) -> None:
    """Remove the half-written files of processes that were killed."""
    for path in folder.iterdir():
        pid = _writer(path, kind)
        # nothing of this process is here yet; in a container its number may be that of the process that was killed
        if pid is not None and (pid == os.getpid() or not psutil.pid_exists(pid)):
            _remove(path)


def temporary(path: Path) -> Path:
    """The hidden name under which this process writes a file or folder, before it is renamed."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk and would outlive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network file systems cannot do this for folders
            raise
    finally:
        os.close(handle)


def _writer(path: Path, kind: Kind) -> int | None:
    """The process whose temporary file this is; `None` if it is none of an artefact."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None or not any(fnmatch(found["name"], pattern) for pattern in kind.artefacts):
        return None
    return int(found["pid"])


def _take_away(artefact: Path) -> None:
    """Remove what seqtune wrote, and the folders that are empty then."""
    for path in written(artefact):
        path.unlink(missing_ok=True)
    if artefact.is_dir() and not artefact.is_symlink():
        for parent, _, _ in os.walk(artefact, topdown=False):
            with suppress(OSError):  # something of somebody else's is in it
                os.rmdir(parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
