"""The run folder: how it is opened, what is written into it (`folders.writing`), and the manifest, which is written last."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqtune import folders
from seqtune.config import Config, load_config
from seqtune.cpus import available_cpus
from seqtune.errors import RunError
from seqtune.folders import Kind
from seqtune.records import Prediction, Rejected
from seqtune.sections import Section
from seqtune.yaml_files import read_json_object

PACKAGES = (
    "seqtune", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "peft", "numpy", "sacrebleu", "rapidfuzz",
)  # fmt: skip
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
PREDICTIONS = "predictions.jsonl"
RUN = Kind(
    name="run",
    marker=".seqtune-run",
    artefacts=(
        MANIFEST,  # first, so that a run that is half removed does not count as complete
        "config.yaml",
        "environment.json",
        "data.json",
        "rejected.jsonl",
        "log.jsonl",
        "checkpoints",
        "model",
        "model-ctranslate2-*",
        ".model-ctranslate2-*",  # its lock, and what is being converted
        "task.yaml",
        VOCABULARY,
        "outcome.json",
        "metrics.json",
        PREDICTIONS,
        "base_predictions.jsonl",
        "diverged.json",
        "README.md",
        "report.html",
        "evaluations",
        "seqtune",  # TensorBoard's folder
    ),
    remedy="continue it with --resume, replace it with --overwrite, or choose another --out",
)


def write_text(path: Path, text: str) -> None:
    """Write a text file that is there as a whole or not at all, also after a kill or a power failure."""
    with folders.writing(path) as hidden:
        hidden.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path, **needed: type) -> dict[str, Any]:
    """Read a JSON object that was written into a run folder.

    Args:
        path: the file.
        needed: what it must hold, and of which type.

    Raises:
        RunError: the file is damaged.
    """
    content = read_json_object(path, damaged)
    for key, kind in needed.items():
        if not isinstance(content.get(key), kind):
            raise damaged(path, f"no {key!r} as seqtune writes it")
    return content


def damaged(path: Path, reason: str) -> RunError:
    """The error for a file of a run folder that cannot be read."""
    return RunError(
        f"{str(path)!r} is damaged ({reason}); put it back from a copy, or start again with --overwrite or another --out"
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and machines, all or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, all or nothing."""
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write `predictions.jsonl`."""
    write_jsonl(path, (p.to_dict() for p in predictions))


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write `rejected.jsonl`."""
    write_jsonl(path, (asdict(r) for r in rejected))


def check_outside(folder: Path, inputs: Iterable[str | None]) -> None:
    """Refuse to overwrite a run in whose folder lies what the new run is made from.

    Args:
        folder: the run folder.
        inputs: paths; hub ids and other names that are no path are passed over.

    Raises:
        RunError: names the path.
    """
    for name in inputs if folders.is_ours(folder, RUN) else ():  # nothing is removed from other folders
        path = os.path.expanduser(name or "")
        if os.path.exists(path) and Path(path).resolve().is_relative_to(folder.resolve()):
            raise RunError(
                f"--overwrite: {name!r} lies in the run folder {str(folder)!r} that is to be replaced; "
                "move it out of there, or choose another --out"
            )


def check_free(config: Config, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that is in the way, before any work is done.

    Raises:
        RunError: it holds something else, a run that is neither to be resumed nor overwritten, or what the new run reads.
    """
    if resume and overwrite:
        raise RunError("--resume continues a run and --overwrite replaces it; give one of them")
    folders.check_free(folder, RUN, reuse=resume or overwrite)
    if overwrite:
        data = config.data
        check_outside(folder, (data.path, data.validation_path, data.test_path, config.model.name))


def open_run(config: Config, folder: Path, fingerprint: str, *, resume: bool, overwrite: bool) -> bool:
    """Create the run folder, or enter one that was begun.

    Returns:
        True if there is a run to continue.

    Raises:
        RunError: the folder is in the way, or holds a run with other settings or other data.
    """
    check_free(config, folder, resume=resume, overwrite=overwrite)
    folders.create(folder, RUN)
    stored = folder / "config.yaml"
    if overwrite or not stored.exists():  # without settings it is what a removal that was killed has left
        folders.clear(folder, RUN)
        return False
    folders.sweep(folder, RUN)
    # what only decides how answers are searched for may change until the run is complete, and has its scores
    compared = leaves if is_complete(folder) else weight_settings
    check_unchanged(*({k: v for k, v in compared(c).items() if k != "out"} for c in (load_config(stored), config)))
    data = folder / "data.json"
    if data.exists() and read_json(data, fingerprint=str)["fingerprint"] != fingerprint:
        raise RunError("--resume needs the data that the run began with; the table or the tokenizer has changed since")
    return True


def check_unchanged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to continue with settings other than the stored ones.

    Raises:
        RunError: names every setting that has changed.
    """
    changed = [f"{k}: {theirs.get(k)!r} -> {v!r}" for k, v in ours.items() if theirs.get(k) != v]
    if changed:
        raise RunError(
            "--resume needs the settings that the run began with; give those, or choose another --out; "
            f"changed: {'; '.join(changed)}"
        )


def write_kept_tokens(folder: Path, kept: list[int]) -> None:
    """Note which tokens of the base a trimmed model kept: the original id of each of its own."""
    write_json(folder / VOCABULARY, {"kept_tokens": kept})


def read_kept_tokens(folder: Path) -> list[int] | None:
    """What `write_kept_tokens` noted; `None` if the vocabulary is whole."""
    path = folder / VOCABULARY
    if not path.exists():
        return None
    kept = read_json(path, kept_tokens=list)["kept_tokens"]
    if not all(isinstance(token, int) and token >= 0 for token in kept):
        raise damaged(path, "token ids are whole numbers from 0 on")
    return kept


def is_complete(folder: Path) -> bool:
    """True once the manifest is written."""
    return (folder / MANIFEST).exists()


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a `checkpoints` folder, the newest last."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest of them."""
    return next(reversed(checkpoints(folder)), None)


def finish(folder: Path) -> None:
    """Write the manifest of a run; its presence says that the run is complete."""
    write_manifest(folder, _files(folder))


def write_manifest(folder: Path, files: Iterable[Path]) -> None:
    """Write down each file with its size and SHA-256, the last thing that is done to a folder."""
    entries = {str(path.relative_to(folder)): _entry(path) for path in files}
    write_json(folder / MANIFEST, {"files": entries})  # and nothing else, for nothing would tell damage to it


def differences(folder: Path, *parts: str) -> dict[str, str]:
    """What is no longer as the manifest says: a file's name, and what is wrong with it.

    Args:
        folder: of a run or a checkpoint; without a manifest there is nothing to compare with.
        parts: beginnings of the names to look at; all without any.

    Raises:
        RunError: the manifest itself is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    wrong = {}
    for name, noted in read_json(path, files=dict)["files"].items():
        is_entry = isinstance(noted, dict) and isinstance(noted.get("bytes"), int) and isinstance(noted.get("sha256"), str)
        if Path(name).is_absolute() or ".." in Path(name).parts or not is_entry:
            raise damaged(path, f"an entry {name!r}")
        if parts and not name.startswith(parts):
            continue
        file = folder / name
        if not file.is_file():
            wrong[name] = "it is missing"
        elif file.stat().st_size != noted["bytes"]:
            wrong[name] = f"it has {file.stat().st_size:,} bytes instead of {noted['bytes']:,}"
        elif _digest(file) != noted["sha256"]:
            wrong[name] = "its content is not what was written"
    return wrong


def verify(folder: Path) -> dict[str, str]:
    """Compare every file of a finished run, and of its checkpoints, with what was written.

    Files beside the model that are not in the manifest count, because a model is read from its whole folder.

    Returns:
        What differs: a file's name, and what is wrong with it.

    Raises:
        RunError: it is no finished run, or its manifest is damaged.
    """
    if not is_complete(folder):
        raise RunError(f"{str(folder)!r} is no finished run: there is no {MANIFEST} in it to compare with")
    wrong = differences(folder)
    listed = read_json(folder / MANIFEST, files=dict)["files"]
    beside = sorted(str(path.relative_to(folder)) for path in (folder / "model").rglob("*") if path.is_file())
    wrong |= {name: "nobody wrote it down" for name in beside if name not in listed}
    for checkpoint in checkpoints(folder / "checkpoints"):
        wrong |= {str((checkpoint / name).relative_to(folder)): why for name, why in differences(checkpoint).items()}
    return wrong


def _files(folder: Path) -> list[Path]:
    """The files of a run that its manifest lists: no checkpoints, no page, nothing hidden, nothing foreign."""
    # the page can be made again at any time, and is
    listed = [path for path in folders.artefacts(folder, RUN) if path.name not in (MANIFEST, "checkpoints", "report.html")]
    files = [file for path in listed for file in folders.written(path) if file.is_file()]
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, once it is safely on the disk."""
    folders.sync(path)
    folders.sync(path.parent)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine, seed, and the git revision of this package if it runs from its own checkout."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": available_cpus(),
        "seed": seed,
        "git_revision": git_revision(Path(__file__).resolve()),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision(source: Path) -> str | None:
    """The revision of the git checkout that a source file belongs to; `None` if it belongs to none.

    Args:
        source: a file. It must be committed: an installed package may lie inside a repository that is somebody else's.
    """
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(source.parent), "rev-parse", "HEAD", f"HEAD:./{source.name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()[0] if done.returncode == 0 else None


def fingerprint(parts: Iterable[bytes]) -> str:
    """A short hash that changes when any part changes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def leaves(section: Section, prefix: str = "") -> dict[str, Any]:
    """All settings as dotted key -> value, for comparing two configurations."""
    found: dict[str, Any] = {}
    for name in (n for n, field in type(section).model_fields.items() if not field.exclude):
        value = getattr(section, name)
        if isinstance(value, Section):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def weight_settings(config: Config) -> dict[str, Any]:
    """The settings that decide a run's weights, as dotted key -> value: all but `out`, `train.parallel` and `decode.*`."""
    others = ("out", "train.parallel")
    return {key: value for key, value in leaves(config).items() if key not in others and not key.startswith("decode.")}
