"""Folders that seqtune makes: known by a marker file, so that nothing of anybody else's is ever replaced or removed."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

import psutil

from seqtune.errors import RunError

# what seqtune, transformers, CTranslate2 and TensorBoard write into the folders that seqtune makes in a run
INSIDE = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "adapter.json", "adapter_config.json", "state.json", "model.bin", "vocabulary.json", "metrics.json", "predictions.jsonl",
    "rejected.jsonl", "task.yaml", "decode.json", "study.json", "report.html", "log.jsonl", "events.out.tfevents.*",
    "hparams.yml", "manifest.json", "step-*", ".seqtune-evaluation",
)  # fmt: skip
MARK = "seqtune made this folder ({kind}). It replaces and removes its own files in it and leaves others alone.\n"
HELD = "It is being written by "
TEMPORARY = re.compile(r"(?:\.old)?\.(?P<name>.+)\.(?P<pid>\d+)")


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
        (folder / kind.marker).write_text(MARK.format(kind=kind.name), encoding="utf-8")
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
    found = [p for p in folder.iterdir() if p.name not in names and _writer(p, kind.artefacts) is None]
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
    """Remove the half-written files of processes that were killed, also those in the folders that seqtune makes in it."""
    tops = [path for path in artefacts(folder, kind) if path.is_dir() and not path.is_symlink()]
    inside = [(path, INSIDE) for top in tops for path in top.rglob(".*")]
    for path, patterns in [*((path, kind.artefacts) for path in folder.iterdir()), *inside]:
        if _is_left(path, patterns):
            _remove(path)


def _is_left(path: Path, patterns: Sequence[str]) -> bool:
    pid = _writer(path, patterns)
    # nothing of this process is here yet; in a container its number may be that of the process that was killed
    return pid is not None and (pid == os.getpid() or not psutil.pid_exists(pid))


@contextmanager
def writing(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Write a file or a folder that is there as a whole or not at all: the one way in which seqtune writes.

    After a kill, a full disk or a power failure at any moment, what was there before is there still. What processes that were
    killed have left of their attempts is removed.

    Args:
        path: what it is to be called.
        aside: where an older folder of that name is put in the moment of exchange; without it, one that is not empty stays.

    Yields:
        A hidden name beside it, to write under.

    Raises:
        OSError: the disk is full, or there is a folder of that name.

    Example:
        with writing(folder / "weights") as hidden:
            save(hidden)
    """
    with scratch(path) as hidden:
        yield hidden
        for part in (*sorted(hidden.rglob("*")), hidden):  # brought to the disk before it has its name
            sync(part)
        if not hidden.is_dir():
            hidden.replace(path)
        elif aside is None or not path.exists():
            hidden.rename(path)
        else:  # the file system cannot exchange folders at once
            _remove(aside)
            path.rename(aside)
            hidden.rename(path)
            _remove(aside)
        sync(path.parent)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A hidden name beside a path, for a file or a folder that is removed in the end; so is what killed processes have left."""
    sweep_beside(path)
    hidden = temporary(path)
    try:
        yield hidden
    finally:
        _remove(hidden)


def sweep_beside(path: Path) -> None:
    """Remove what killed processes have left of their attempts to write a file or folder."""
    if path.parent.is_dir():
        for left in path.parent.glob(f".*{glob.escape(path.name)}.*"):
            if _is_left(left, (glob.escape(path.name),)):
                _remove(left)


def aside(path: Path) -> Path:
    """A hidden name for a folder that is being replaced."""
    return path.with_name(f".old{temporary(path).name}")


@contextmanager
def held(folder: Path, kind: Kind) -> Iterator[None]:
    """Keep a folder for this process until the block or the process ends, however that ends; its marker file is the lock.

    It is a lock of POSIX (fcntl), which network file systems know too; where one does not, nothing is locked.

    Args:
        folder: one of ours.
        kind: its kind.

    Raises:
        RunError: another process holds it; says which, on which machine and since when.
    """
    with (folder / kind.marker).open("r+", encoding="utf-8") as marker:
        try:
            fcntl.lockf(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # no locks here
                yield
                return
            _, known, holder = marker.read().rpartition(HELD)
            holder = holder.strip() if known else "another process"
            raise RunError(
                f"{str(folder)!r} is being written by {holder}; wait until it has ended, stop it, or choose another --out"
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        _mark(marker, kind, f"{HELD}process {os.getpid()} on {socket.gethostname()} since {since}\n")
        try:
            yield
        finally:
            _mark(marker, kind, "")


def _mark(marker: IO[str], kind: Kind, holder: str) -> None:
    marker.seek(0)
    marker.truncate()
    marker.write(MARK.format(kind=kind.name) + holder)
    marker.flush()


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


def _writer(path: Path, patterns: Sequence[str]) -> int | None:
    """The process whose temporary file this is; `None` if it is none of a file of ours."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None or not any(fnmatch(found["name"], pattern) for pattern in patterns):
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
