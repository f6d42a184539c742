"""Exports for other programs: each is asked in its own runtime, which is the independent reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chats import chat_folder
from conftest import build_model, build_tokenizer, pairs, write_csv
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError, MissingDependencyError, RunError
from seqtune.models.loading import load_model
from seqtune.procedures import export as exporting
from seqtune.procedures.export import Order, export
from seqtune.procedures.fit import fit
from seqtune.procedures.formats import table
from seqtune.procedures.formats.table import FORMATS
from seqtune.records import Example
from seqtune.sections import ModelConfig


def trained(folder: Path, base: Path, **settings) -> Path:
    config = load_config(
        overrides={
            "data.path": str(write_csv(folder / "pairs.csv", pairs(100))), "model.name": str(base), "train.max_steps": 25,
            "train.batch_size": 16, "train.learning_rate": 0.01, "data.split": {"validation": 0.0, "test": 0.2},
            "decode.max_new_tokens": 12, "out": str(folder / "run"), **settings,
        }
    )  # fmt: skip
    fit(config, quiet=True)
    return folder / "run"


@pytest.fixture(scope="module", params=table.FAMILIES)
def run(request, tmp_path_factory) -> tuple[str, Path]:
    """A run of each family, with the family's name."""
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    tokenizer = build_tokenizer(family)
    build_model(family, len(tokenizer), width=64).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return family, trained(folder, folder / "base")


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = build_tokenizer("llama")
    build_model("llama", len(tokenizer), width=64).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return trained(folder, folder / "base")


def said_by_the_readme(folder: Path, capsys) -> str:
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 5
    capsys.readouterr()
    exec(code.replace("FOLDER", str(folder)), {})
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("gguf", "f32"),
        ("gguf", "f16"),
        ("mlx", "f32"),
        ("ctranslate2", "float32"),
        pytest.param("onnx", "f32", marks=pytest.mark.slow),
    ],
)
def test_every_format_answers_like_the_run_and_its_readme_shows_how(run, name, weights, tmp_path, capsys):
    family, folder = run
    wanted = FORMATS[name]
    if not wanted.holds(family):
        with pytest.raises(ConfigError, match=f"--to {name}: .* cannot hold '{family}'.*goes to: hf"):
            export(folder, tmp_path / "out", Order(name, weights))
        return
    for package, _ in (*wanted.needs, *wanted.asks):
        pytest.importorskip(package)
    facts = export(folder, tmp_path / "out", Order(name, weights, num_verified=20, max_different=0.0))
    assert (facts["num_verified"], facts["num_different"], facts["num_tokenized_differently"]) == (20, 0, 0)
    expected = Predictor.of_run(str(folder)).predict([Example("1", "an input", None)])[0].prediction
    assert said_by_the_readme(tmp_path / "out", capsys) == expected


def test_eight_bits_are_small_and_close(llama_run, tmp_path):
    pytest.importorskip("xllamacpp")
    facts = export(llama_run, tmp_path / "q8", Order("gguf", "q8_0", num_verified=20, max_different=0.1))
    whole = export(llama_run, tmp_path / "f32", Order("gguf", "f32"))
    assert facts["num_bytes"] < 0.4 * whole["num_bytes"]


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_an_adapter_goes_out_alone_and_peft_puts_it_on_its_base(llama_run, tmp_path, capsys, method):
    run = trained(tmp_path, llama_run, **{"adapter.method": method, "model.trim_vocabulary": False})
    facts = export(run, tmp_path / "out", Order("peft", num_verified=20, max_different=0.0))
    assert facts["num_different"] == 0
    assert not (tmp_path / "out" / "model.safetensors").exists()
    expected = Predictor.of_run(str(run)).predict([Example("1", "an input", None)])[0].prediction
    assert said_by_the_readme(tmp_path / "out", capsys) == expected
    merged = export(run, tmp_path / "merged", Order(num_verified=20, max_different=0.0))
    assert facts["num_bytes"] < merged["num_bytes"]


def test_an_adapter_that_its_base_has_no_use_for_is_refused(llama_run, tmp_path):
    with pytest.raises(ConfigError, match=r"adapter.method of this run is 'full'; peft takes lora, ia3, oft; use --to hf"):
        export(llama_run, tmp_path / "out", Order("peft"))
    base = llama_run.parent / "base"
    run = trained(tmp_path, base, **{"adapter.method": "lora", "adapter.targets": ["lm_head"], "model.trim_vocabulary": True})
    with pytest.raises(ConfigError, match="the adapter has rows for the run's trimmed vocabulary, which its base"):
        export(run, tmp_path / "out", Order("peft"))


@pytest.mark.parametrize("full", [False, True], ids=["trimmed", "whole"])
def test_a_gguf_file_read_back_has_every_weight(llama_run, tmp_path, full, monkeypatch):
    """Through transformers' own reader, which `seqtune.models.gguf` uses."""
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    export(llama_run, tmp_path / "hf", Order(full_vocabulary=full))
    export(llama_run, tmp_path / "gguf", Order("gguf", "f32", full_vocabulary=full))
    back = load_model(ModelConfig(name=str(tmp_path / "gguf" / "model.gguf")), 0)
    for name, parameter in AutoModelForCausalLM.from_pretrained(tmp_path / "hf").named_parameters():
        torch.testing.assert_close(back.get_parameter(name), parameter, rtol=0, atol=0)


def test_a_chat_keeps_its_template_and_its_end(tmp_path, capsys):
    pytest.importorskip("xllamacpp")
    # after 25 steps the two best tokens are at times 0.002 apart, and the other runtime's cache is in half precision
    settings = {"format.template": "chat", "format.system": "Say it", "train.max_steps": 60}
    run = trained(tmp_path, chat_folder(tmp_path / "base", "chatml"), **settings)
    facts = export(run, tmp_path / "out", Order("gguf", "f32", num_verified=20, max_different=0.0))
    assert (facts["num_different"], facts["num_tokenized_differently"]) == (0, 0)
    expected = Predictor.of_run(str(run)).predict([Example("1", "an input", None)])[0].prediction
    assert said_by_the_readme(tmp_path / "out", capsys) == expected
    from xllamacpp import CommonParams, Server

    served = CommonParams()
    served.model.path, served.n_parallel, served.verbosity = str(tmp_path / "out" / "model.gguf"), 1, -1
    turns = [{"role": "system", "content": "Say it"}, {"role": "user", "content": "an input"}]
    found = Server(served).handle_chat_completions({"messages": turns, "max_tokens": 12, "temperature": 0})
    assert found["choices"][0]["message"]["content"].strip() == expected


def test_beams_are_compared_with_the_runs_own_greedy_answers(tmp_path, llama_run):
    pytest.importorskip("xllamacpp")
    run = trained(tmp_path, llama_run.parent / "base", **{"decode.num_beams": 3})
    facts = export(run, tmp_path / "gguf", Order("gguf", "f32", num_verified=20, max_different=0.0))
    assert facts["verified_against"] == "the run's greedy answers"
    assert export(run, tmp_path / "hf", Order(num_verified=20, max_different=0.0))["verified_against"] == "stored predictions"


def test_too_many_differences_fail_and_leave_nothing(llama_run, tmp_path, monkeypatch):
    class Parrot:
        def answers(self, prompts, limits):
            return ((prompt, 1) for prompt in prompts)

    monkeypatch.setattr(table.Format, "open", lambda *_, **__: Parrot())
    with pytest.raises(RunError, match=r"(?s)20 of 20 answers come out different in transformers, .*--max-different.*became '"):
        export(llama_run, tmp_path / "out", Order(num_verified=20))
    assert list(tmp_path.iterdir()) == []
    facts = export(llama_run, tmp_path / "out", Order(num_verified=20, max_different=1.0))
    assert facts["num_different"] == 20
    assert "20 answers differ from stored predictions" in (tmp_path / "out" / "README.md").read_text()


def test_what_does_not_fit_is_said_before_anything_is_loaded(llama_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load_merged", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="--weights 'q4_0': --to gguf has f16, q8_0, f32"):
        export(llama_run, tmp_path / "out", Order("gguf", "q4_0"))
    monkeypatch.setattr(table, "find_spec", lambda _: None)
    with pytest.raises(
        MissingDependencyError, match=r"--to onnx needs the package 'onnxscript': pip install 'seqtune\[export\]'"
    ):
        export(llama_run, tmp_path / "out", Order("onnx"))
    with pytest.raises(MissingDependencyError, match=r"--to mlx --verify needs the package 'mlx_lm'"):
        export(llama_run, tmp_path / "out", Order("mlx", num_verified=1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'linear'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
    ],
)
def test_what_llama_cpp_computes_in_another_way_is_refused(change, said):
    model, tokenizer = build_model("llama", 300), build_tokenizer("llama")
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ConfigError, match=f"llama.cpp computes 'llama' without {said}; use --to hf"):
        FORMATS["gguf"].check(model.config, tokenizer, None, asked=False)


def test_a_tokenizer_that_llama_cpp_lacks_is_refused():
    from tokenizers import pre_tokenizers

    tokenizer = build_tokenizer("gpt2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ConfigError, match=r"no tokenizer like this one \(BPE \+ Whitespace \+ ByteLevel\); known are"):
        FORMATS["gguf"].check(build_model("gpt2", 330).config, tokenizer, None, asked=False)


def test_the_table_is_shown(capsys):
    assert run_app(["export", "--formats"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"opt +│ yes +│ yes +│ no +│ yes +│ no +│ yes", shown)
    assert run_app(["export", "some-run"]) == 2
    assert "--out is missing: seqtune export RUN --out DIR, or seqtune export --formats" in capsys.readouterr().err


def test_the_folder_of_an_export_is_a_model_of_its_own(llama_run, tmp_path):
    export(llama_run, tmp_path / "out", Order("mlx"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) > 0
