"""A small study that the tests of this folder share, and a way to run it in this process."""

from __future__ import annotations

from pathlib import Path

import yaml

from seqtune import studies
from seqtune.cli.app import run_app
from seqtune.errors import RunError
from seqtune.studies.processes import Process


def study_file(folder: Path, llama: Path, **changes) -> Path:
    content = {
        "name": "toy",
        "base": {
            "data": {"path": str(folder / "pairs.csv"), "split": {"test": 0.2, "validation": 0.1}},
            "model": {"name": str(llama)},
            "decode": {"max_new_tokens": 6},
        },
        "axes": {"data.num_examples": [20, 60], "decode.num_beams": [1, 2]},
        "seeds": [0, 1],
        "budget": {"kind": "steps", "value": 3},
        "out": str(folder / "results" / "toy"),
    } | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


CONSTANT = {"schedule": "constant", "warmup": 0}


def without_validation(folder: Path, llama: Path, train: dict = CONSTANT, **changes) -> studies.Study:
    base = {
        "data": {"path": str(folder / "pairs.csv"), "split": {"test": 0.2, "validation": 0.0}},
        "model": {"name": str(llama)},
        "decode": {"max_new_tokens": 6},
        "train": train,
    }
    return studies.load_study(study_file(folder, llama, **({"base": base, "budget": None, "seeds": [0]} | changes)))


def run_here(monkeypatch) -> list[list[str]]:
    """Verbs run here instead of in a process each; the list of what was run grows."""
    commands = []

    def call(self, arguments):
        commands.append(list(arguments))
        if run_app(list(arguments)):
            raise RunError("failed")
        return 1

    monkeypatch.setattr(Process, "__call__", call)
    return commands
