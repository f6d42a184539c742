"""Where models are found, and what is said of one that cannot be loaded."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from seqtune.config import load_config
from seqtune.errors import ModelError
from seqtune.models import loading, location
from seqtune.models.adapters import Adapter, load_trained
from seqtune.models.loading import load_model
from seqtune.sections import AdapterConfig, ModelConfig


def test_a_torn_weights_file_is_named(llama_folder, tmp_path):
    torn = shutil.copytree(llama_folder, tmp_path / "torn")
    file = torn / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"torn/model.safetensors' is damaged \(.* put it back from a copy"):
        load_model(ModelConfig(name=str(torn)), 0)


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "si-u"), ("hidden_size", "x"), ("num_attention_heads", None)])
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_a_configuration_that_describes_no_model_is_named(llama_folder, tmp_path, key, value, init):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {key: value}))
    with pytest.raises(ModelError, match=f"{tmp_path}/model' (describes no model|cannot be loaded)"):
        load_model(ModelConfig(name=str(folder), init=init), 0)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/nmaes", "there is no folder 'runs/nmaes'; did you mean 'runs/names'?"),
        ("runs/else", "there is no folder 'runs/else'"),
        ("./runs/nmaes", "the model folder './runs/nmaes' does not exist; did you mean 'runs/names'?"),
        (
            "name",
            "there is no folder 'name', and the hub cannot be asked for a model of this name (no net); did you mean 'runs/names'?",
        ),
        ("some/one", "there is no folder 'some/one', and the hub cannot be asked for a model of this name (no net)"),
        ("some one", "there is no folder 'some one', and the name is none that the hub knows, OWNER/NAME"),
    ],
)
def test_a_name_that_stands_for_nothing_is_said_at_once_with_near_ones(tmp_path, monkeypatch, name, message):
    """Before, each file of the model was looked for on the hub, with all retries, for a minute."""

    def no_network(*_, **__):
        asked.append(name)
        raise ConnectionError("no net\nmore lines")

    asked: list[str] = []
    (tmp_path / "runs" / "names").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.model_info", no_network)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("looked for on the hub"))
    location._why_not_on_hub.cache_clear()
    for load in (location.check_there, loading.load_tokenizer):
        with pytest.raises(ModelError) as caught:
            load(ModelConfig(name=name))
        assert str(caught.value) == message
    assert len(asked) <= 1


def test_a_model_that_the_hub_has_given_before_needs_no_network(tmp_path, monkeypatch):
    """The hub's own on-disk layout, offline: refs, snapshots."""
    folder = tmp_path / "models--some--one"
    for path, text in ((folder / "refs" / "main", "abc"), (folder / "snapshots" / "abc" / "config.json", "{}")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr("huggingface_hub.model_info", lambda *names, **_: asked.append(names))
    location._why_not_on_hub.cache_clear()
    location.check_there(ModelConfig(name="some/one"))
    assert asked == []
    location._why_not_on_hub.cache_clear()


def test_no_foreign_warning_of_a_kernel_that_is_never_used():
    """bitsandbytes warns on CPUs with AVX-512 BF16 when it is imported, and peft imports it."""
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
