"""Files of a model's folder: what is wrong with one is said before any other library opens it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForCausalLM

from seqtune.cli.app import run_app
from seqtune.errors import ModelError
from seqtune.models import weight_files
from seqtune.models.loading import load_model
from seqtune.sections import ModelConfig


@pytest.fixture
def model(llama_folder, tmp_path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


@pytest.fixture
def sharded(llama_folder, tmp_path) -> Path:
    folder = tmp_path / "sharded"
    shutil.copytree(llama_folder, folder, ignore=lambda *_: ["model.safetensors"])
    AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def load(folder: Path) -> torch.nn.Module:
    return load_model(ModelConfig(name=str(folder)), 0)


def test_whole_models_are_loaded(model, sharded):
    one, several = load(model), load(sharded)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, several.state_dict()[name])


# tensors


def no_tensors(tensors):
    tensors.clear()


def three_tensors(tensors):
    for name in list(tensors)[3:]:
        del tensors[name]


def one_missing(tensors):
    del tensors["model.norm.weight"]
    tensors["lm_head.bias"] = torch.zeros(2000)  # as many numbers as before


def one_more(tensors):
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)


def one_turned(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].T.contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_tensors, r"holds 0 tensors with 0 weights, and config.json beside it describes a model with \d+ layers;"),
        (three_tensors, "holds 3 tensors with .* fetch it again"),
        (one_missing, r"1 missing \(model.norm.weight\); 1 not of this model \(lm_head.bias\). Put both files back"),
        (one_more, r"are not those of the model that config.json beside it describes: 1 not of this model \(model.layers.7"),
        (one_turned, r"1 of another shape \(\(?'?model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_an_error(model, capsys, change, said):
    file = model / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"model.safetensors' .*{said}"):
        load(model)
    assert run_app(["predict", str(model), "a"]) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_settings_of_a_giant_take_no_memory(model):
    content = json.loads((model / "config.json").read_text())
    for change in ({"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"intermediate_size": 10**10}):
        (model / "config.json").write_text(json.dumps(content | change))
        with pytest.raises(ModelError, match="do not belong together"):
            load(model)


# places


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "seqtune reads safetensors only, because other weight files can run code"),
        ("../other.safetensors", "which is no file beside it"),
        ("/etc/passwd", "which is no file beside it"),
        ("..", "seqtune reads safetensors only"),
        ("deep\\other.safetensors", "which is no file beside it"),
        ("absent.safetensors", r"absent.safetensors' is damaged \(it is not there, but its index names it\)"),
    ],
)
def test_an_index_names_safetensors_files_beside_it_or_nothing_is_read(sharded, name, said):
    torch.save({"a": torch.zeros(1)}, sharded / "pytorch_model.bin")
    index = sharded / weight_files.INDEX
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=said):
        load(sharded)


def test_a_link_out_of_the_folder_is_not_followed_but_for_the_hubs_cache(model, tmp_path):
    blob = tmp_path / "hub" / "models--a--b" / "blobs" / "1"
    blob.parent.mkdir(parents=True)
    shutil.move(model / "model.safetensors", blob)
    (model / "model.safetensors").symlink_to(blob)
    with pytest.raises(ModelError, match=r"is a link out of its folder, to '.*blobs/1'; put the file itself there"):
        load(model)
    snapshot = blob.parents[1] / "snapshots" / "abc"
    shutil.copytree(model, snapshot, symlinks=True)
    load(snapshot)
    link = tmp_path / "link"
    link.symlink_to(snapshot)  # the user's own way to a folder
    load(link)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": "\udcff"}'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_damaged_settings_are_named(model, name, text, capsys):
    (model / name).write_bytes(text.encode(errors="surrogateescape"))
    assert run_app(["predict", str(model), "a"]) == 1
    assert f"{name}' is damaged (" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", '{"version": "1.0"}', "\0" * 100])
def test_a_damaged_tokenizer_is_an_error(model, text, capsys):
    (model / "tokenizer.json").write_text(text)
    assert run_app(["predict", str(model), "a"]) == 1
    assert "error: the tokenizer of" in capsys.readouterr().err


# headers


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it has 0 bytes"),
        (b"\xff" * 8, "a header of 18,446,744,073,709,551,615 is announced"),
        (header(a=ONE) + b"1234567", "8 bytes of tensors are announced, and 7 are there"),
        (header(a=ONE) + b"123456789", "8 bytes of tensors are announced, and 9 are there"),
        (header(a=ONE | {"shape": [3]}) + b"12345678", "a tensor of 12 bytes is said to lie at 0 to 8"),
        (header(a=ONE | {"shape": [10**30, 0]}) + b"12345678", "a tensor of 0 bytes is said to lie at 0 to 8"),
        (header(a=ONE, b=ONE) + b"12345678", "is said to lie at 0 to 8"),
        (header(a=ONE | {"data_offsets": [4, 12]}) + b"123456789012", "is said to lie at 4 to 12"),
        (header(a=ONE | {"shape": [-2]}) + b"12345678", "its header cannot be read"),
        (header(a=ONE | {"dtype": "F31"}) + b"12345678", "its header cannot be read"),
        (header(a=ONE | {"shape": "x"}) + b"12345678", "its header cannot be read"),
        (header(a=7), "its header cannot be read"),
        ((2).to_bytes(8, "little") + b"[]", "its header cannot be read"),
        ((18).to_bytes(8, "little") + b'{"a": {}, "a": {}}', "a name appears twice"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_its_file_is_named(tmp_path, content, said):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=f"model.safetensors' is damaged .*{said}"):
        weight_files.shapes_in(file)


WHOLE = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.bfloat16)}, {"x": "y"})


def test_shapes_are_those_of_the_library(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(WHOLE)
    assert weight_files.shapes_in(file) == {"a": (2, 3), "b": (0,), "c": (2,)}


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=4), st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_what_passes_here_passes_the_library(tmp_path_factory, place, inserted, removed):
    """`safetensors` in Rust as the reference: this reader lets nothing through that it would refuse."""
    file = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    file.write_bytes(WHOLE[:place] + inserted + WHOLE[place + removed :])
    try:
        shapes = weight_files.shapes_in(file)
    except ModelError:
        return
    try:
        with safe_open(file, "pt") as opened:
            assert {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()} == shapes  # noqa: SIM118
    except SafetensorError as error:
        pytest.fail(f"the library refuses it: {error}")
