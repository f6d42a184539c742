"""Where models are found, and what is said of one that cannot be loaded."""

from __future__ import annotations

import shutil

import pytest

from seqtune.config import AdapterConfig, ModelConfig, load_config
from seqtune.errors import ModelError
from seqtune.models.adapters import Adapter, load_trained
from seqtune.models.loading import load_model


def test_a_torn_weights_file_is_named(llama_folder, tmp_path):
    torn = shutil.copytree(llama_folder, tmp_path / "torn")
    file = torn / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"torn/model.safetensors' is damaged \(.* put it back from a copy"):
        load_model(ModelConfig(name=str(torn)), 0)


def test_an_adapter_is_found_below_the_home_folder(llama_folder, tmp_path, monkeypatch):
    """A model's own folder is, so the run of an adapter must be too."""
    config = AdapterConfig(method="lora", rank=2)
    Adapter.attach(load_model(ModelConfig(name=str(llama_folder)), 0), config).save(tmp_path / "run" / "model")
    settings = load_config(None, {"model.name": str(llama_folder), "adapter": config.model_dump()})
    (tmp_path / "run" / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    _, adapter = load_trained(ModelConfig(name="~/run"), 0)
    assert adapter is not None
    assert adapter.config == config
