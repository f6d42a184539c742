"""Look at the environment: what is there, what is missing, how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from seqtune import plugins, runs
from seqtune.cpus import available_cpus
from seqtune.models.machine import best_device
from seqtune.procedures.bases import known_bases


def examine() -> dict[str, dict[str, Any]]:
    """Facts by section, as plain values."""
    return {
        "system": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": available_cpus(),
            "memory_gib": _memory_gib(),
            "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        },
        "device": _device(),
        "packages": {name: _found(name) for name in runs.PACKAGES},
        "extras": {name: _found(name, extra) for name, extra in plugins.EXTRAS.items()},
        "programs": {"java": shutil.which("java") or "missing: apt install default-jre-headless (checks names, by OPSIN)"},
        "models": {base.name: base.state() for base in known_bases()},
    }


def _device() -> dict[str, Any]:
    facts: dict[str, Any] = {"default": str(best_device()), "threads": torch.get_num_threads()}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        facts["bf16"] = torch.cuda.is_bf16_supported()
        facts["cuda"] = torch.version.cuda
    return facts


def _found(name: str, extra: str | None = None) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"missing: pip install 'seqtune[{extra}]'" if extra else f"missing: pip install {name}"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
