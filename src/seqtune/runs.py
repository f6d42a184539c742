"""The run folder: what is written, when, and that the manifest comes last."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqtune.config import Config, leaves, load_config, weight_settings
from seqtune.cpus import available_cpus
from seqtune.errors import RunError
from seqtune.records import Prediction, Rejected

PACKAGES = (
    "seqtune",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "peft",
    "numpy",
    "sacrebleu",
    "rapidfuzz",
)
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
PREDICTIONS = "predictions.jsonl"


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and machines, all or nothing."""
    _replace(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, all or nothing."""
    _replace(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write `predictions.jsonl`."""
    write_jsonl(path, (p.to_dict() for p in predictions))


def write_prediction_table(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as .csv or .tsv for spreadsheets: a row each, the details as columns."""
    records = list(predictions)
    details = list(dict.fromkeys(key for p in records for key in p.details))
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerow(["id", "input", "prediction", "status", "log_probability", *details])
    for p in records:
        writer.writerow([p.id, p.input, p.prediction, p.status, f"{p.score:.4f}", *(p.details.get(k, "") for k in details)])
    _replace(path, out.getvalue())


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write `rejected.jsonl`."""
    write_jsonl(path, (asdict(r) for r in rejected))


def _replace(path: Path, text: str) -> None:
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        hidden.write_text(text, encoding="utf-8", errors="backslashreplace")
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that is in the way, before any work is done.

    Raises:
        RunError: it holds something else, or a run that is neither to be resumed nor overwritten.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file; choose another --out")
    if any(folder.iterdir()) and not (folder / "config.yaml").exists():
        raise RunError(f"{str(folder)!r} exists and is no run folder; choose another --out")
    if any(folder.iterdir()) and not (resume or overwrite):
        raise RunError(
            f"{str(folder)!r} holds a run already; continue it with --resume, replace it with --overwrite, "
            "or choose another --out"
        )


def open_run(config: Config, folder: Path, fingerprint: str, *, resume: bool, overwrite: bool) -> bool:
    """Create the run folder, or enter one that was begun.

    Returns:
        True if there is a run to continue.

    Raises:
        RunError: the folder is in the way, or holds a run with other settings or other data.
    """
    check_free(folder, resume=resume, overwrite=overwrite)
    stored = folder / "config.yaml"
    if overwrite and stored.exists():
        shutil.rmtree(folder)
    if not stored.exists():
        folder.mkdir(parents=True, exist_ok=True)
        return False
    # what only decides how answers are searched for may change until the run is complete, and has its scores
    compared = leaves if is_complete(folder) else weight_settings
    theirs, ours = compared(load_config(stored)), compared(config)
    changed = [f"{k}: {theirs.get(k)!r} -> {v!r}" for k, v in ours.items() if k != "out" and theirs.get(k) != v]
    if changed:
        raise RunError("--resume needs the settings that the run began with; changed: " + "; ".join(changed))
    data = folder / "data.json"
    if data.exists() and json.loads(data.read_text())["fingerprint"] != fingerprint:
        raise RunError("--resume needs the data that the run began with; the table or the tokenizer has changed since")
    return True


def write_kept_tokens(folder: Path, kept: list[int]) -> None:
    """Note which tokens of the base a trimmed model kept: the original id of each of its own."""
    write_json(folder / VOCABULARY, {"kept_tokens": kept})


def read_kept_tokens(folder: Path) -> list[int] | None:
    """What `write_kept_tokens` noted; `None` if the vocabulary is whole."""
    path = folder / VOCABULARY
    return json.loads(path.read_text())["kept_tokens"] if path.exists() else None


def is_complete(folder: Path) -> bool:
    """True once the manifest is written."""
    return (folder / MANIFEST).exists()


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a `checkpoints` folder."""
    found = sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name))
    return found[-1] if found else None


def finish(folder: Path) -> None:
    """Write the manifest: every artefact with its size and SHA-256; its presence says that the run is complete."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "checkpoints" not in p.parts and p.name != MANIFEST)
    entries = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    write_json(folder / MANIFEST, {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "files": entries})


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine, git revision and seed."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": available_cpus(),
        "seed": seed,
        "git_revision": _git_revision(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def fingerprint(parts: Iterable[bytes]) -> str:
    """A short hash that changes when any part changes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
