"""Runs to be broken: finished, small, copied for every test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import pairs, write_csv
from seqtune.config import load_config
from seqtune.procedures.fit import fit

CODE = """
from pathlib import Path
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

Path({witness!r}).write_text("this ran")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def train(base: Path, folder: Path, **settings: Any) -> Path:
    """A run with scores and a checkpoint, as quick as one can be."""
    table = write_csv(folder.with_suffix(".csv"), pairs(60))
    overrides = {"data.path": str(table), "model.name": str(base), "out": str(folder), "train.max_steps": 2}
    overrides |= {"data.split": {"validation": 0.1, "test": 0.1}, "decode.max_new_tokens": 3, "train.batch_size": 8}
    fit(load_config(overrides=overrides | settings), quiet=True)
    return folder


@pytest.fixture(scope="session")
def full(llama_folder, tmp_path_factory) -> Path:
    """A run of full fine-tuning with a trimmed vocabulary."""
    return train(llama_folder, tmp_path_factory.mktemp("full") / "run")


@pytest.fixture(scope="session")
def lora(llama_folder, tmp_path_factory) -> Path:
    """A run that trained an adapter."""
    return train(
        llama_folder,
        tmp_path_factory.mktemp("lora") / "run",
        **{"adapter.method": "lora", "adapter.rank": 2, "adapter.targets": ["q_proj"]},
    )


@pytest.fixture
def run(full, tmp_path) -> Path:
    """A copy of `full` to break."""
    return Path(shutil.copytree(full, tmp_path / "run"))


def with_code(model: Path, witness: Path) -> Path:
    """Give a model folder code of its own, which leaves a witness when it runs."""
    (model / "own.py").write_text(CODE.format(witness=str(witness)))
    settings = json.loads((model / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (model / "config.json").write_text(json.dumps(settings))
    return model
