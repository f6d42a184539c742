"""What a folder says is no permission: no code of it runs, nothing that it names is fetched, unless this command says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from conftest import pairs, write_csv
from faults.conftest import train, with_code
from seqtune import SequenceLearner
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.errors import ModelError
from seqtune.models.loading import load_model
from seqtune.models.location import base_of
from seqtune.sections import ModelConfig
from seqtune.studies.points import load_study, make_point
from seqtune.tokens import preparation


@pytest.fixture(autouse=True)
def own_modules(monkeypatch, tmp_path):
    """transformers copies a model's code to a folder and imports it from there; each test has its own."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def witness(tmp_path) -> Path:
    return tmp_path / "witness"


@pytest.fixture
def over_code(lora, llama_folder, tmp_path, witness) -> Path:
    """The run of an adapter whose settings name a base with code, and trust it."""
    base = with_code(Path(shutil.copytree(llama_folder, tmp_path / "base")), witness)
    run = Path(shutil.copytree(lora, tmp_path / "run"))
    say(run, name=str(base), trust_remote_code=True)
    return run


def say(run: Path, **model) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"] |= model
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def commands(run: Path, tmp_path: Path) -> dict[str, list[str]]:
    table = str(write_csv(tmp_path / "pairs.csv", pairs(60)))
    return {
        "predict": ["predict", str(run), "100"],
        "evaluate": ["evaluate", str(run), table],
        "fit": ["fit", "--data", table, "--model", str(run), "--out", str(tmp_path / "out"), "--set", "train.max_steps=1",
                "--set", "data.split.validation=0", "--set", "decode.max_new_tokens=2"],
        "export": ["export", str(run), "--out", str(tmp_path / "exported")],
    }  # fmt: skip


VERBS = ("predict", "evaluate", "fit", "export")


@pytest.mark.parametrize("verb", VERBS)
def test_the_base_of_an_adapter_runs_no_code_that_the_run_folder_trusts(over_code, tmp_path, witness, capsys, verb):
    command = commands(over_code, tmp_path)[verb]
    assert run_app(command) == 1
    assert not witness.exists()
    said = f"it brings its own code, which runs only if you trust it: --trust-remote-code {tmp_path / 'base'}"
    assert said in capsys.readouterr().err
    assert run_app([*command, "--trust-remote-code", "somebody/else"]) == 1
    assert not witness.exists()
    assert run_app([*command, "--trust-remote-code", f"{tmp_path}/run/../base"]) == 0
    assert witness.exists()


@pytest.mark.parametrize("verb", VERBS)
def test_the_model_of_a_run_runs_no_code(full, tmp_path, witness, capsys, verb):
    run = Path(shutil.copytree(full, tmp_path / "run"))
    with_code(run / "model", witness)
    say(run, trust_remote_code=[str(run)])
    command = commands(run, tmp_path)[verb]
    assert run_app(command) == 1
    assert not witness.exists()
    assert f"--trust-remote-code {run}" in capsys.readouterr().err
    assert run_app([*command, "--trust-remote-code", str(run)]) == 0
    assert witness.exists()


def test_a_whole_vocabulary_brings_no_code_of_the_base(full, tmp_path, witness, llama_folder, capsys):
    run = Path(shutil.copytree(full, tmp_path / "run"))
    base = with_code(Path(shutil.copytree(llama_folder, tmp_path / "base")), witness)
    say(run, name=str(base), trust_remote_code=True)
    command = ["export", str(run), "--out", str(tmp_path / "out"), "--full-vocabulary"]
    assert run_app(command) == 1
    assert not witness.exists()
    assert f"--trust-remote-code {base}" in capsys.readouterr().err
    assert run_app([*command, "--trust-remote-code", str(base)]) == 0
    assert witness.exists()


def test_the_learner_runs_code_only_where_its_settings_name_the_model(over_code, tmp_path, witness):
    inputs, outputs = map(list, zip(*pairs(30), strict=True))
    settings = {"train.max_steps": 1, "decode.max_new_tokens": 2}
    with pytest.raises(ModelError, match="--trust-remote-code"):
        SequenceLearner(str(over_code), settings=settings).fit(inputs, outputs)
    assert not witness.exists()
    base = str(tmp_path / "base")
    learner = SequenceLearner(base, settings=settings | {"model.trust_remote_code": [base]}).fit(inputs, outputs)
    assert witness.exists()
    assert len(learner.predict(inputs[:2])) == 2


def test_a_settings_file_permits_nothing_and_the_permission_is_never_written_down(tmp_path, llama_folder, witness, capsys):
    base = with_code(Path(shutil.copytree(llama_folder, tmp_path / "base")), witness)
    table = write_csv(tmp_path / "pairs.csv", pairs(60))
    file = tmp_path / "config.yaml"
    settings = {"data": {"path": str(table), "split": {"validation": 0, "test": 0.05}}, "train": {"max_steps": 1},
                "decode": {"max_new_tokens": 2}, "out": str(tmp_path / "run")}  # fmt: skip
    file.write_text(yaml.safe_dump(settings | {"model": {"name": str(base), "trust_remote_code": [str(base)]}}))
    assert run_app(["fit", str(file)]) == 1
    assert not witness.exists()
    assert "--trust-remote-code" in capsys.readouterr().err
    assert run_app(["fit", str(file), "--trust-remote-code", str(base)]) == 0
    assert "trust" not in (tmp_path / "run" / "config.yaml").read_text()


def test_a_study_file_permits_nothing(tmp_path, table):
    file = tmp_path / "study.yaml"
    base = {"data": {"path": str(table)}, "model": {"name": "a/b", "trust_remote_code": ["a/b"]}}
    file.write_text(yaml.safe_dump({"name": "s", "out": str(tmp_path / "s"), "base": base, "axes": {"train.epochs": [1]}}))
    untrusted, trusted = (make_point(load_study(file, names), {}, None, 0) for names in ((), ("a/b",)))
    assert not untrusted.config.model.runs_code
    assert trusted.config.model.runs_code
    assert trusted.run == untrusted.run  # who trusts what decides nothing about the weights


@pytest.mark.parametrize("name", ["owner/of-nothing", "hf://owner/of-nothing/model.gguf"])
def test_a_base_on_the_hub_that_a_run_names_is_not_fetched(lora, tmp_path, monkeypatch, name):
    import huggingface_hub

    def fetched(*_, **__):
        pytest.fail("this asked the hub")

    run = Path(shutil.copytree(lora, tmp_path / "run"))
    say(run, name=name)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fetched)
    with pytest.raises(ModelError, match="is not on this machine, and what a run folder says is no permission to fetch it; if"):
        base_of(run)
    monkeypatch.setattr(
        "seqtune.progress.confirmed", lambda question: f"names the base '{name}' on the hub; fetch it?" in question
    )
    assert base_of(run).model.name == name


def test_a_base_that_was_fetched_before_is_taken_from_where_it_lies(lora, llama_folder, tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--owner--base"
    shutil.copytree(llama_folder, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run = Path(shutil.copytree(lora, tmp_path / "run"))
    say(run, name="owner/base")
    assert base_of(run).model.name == str(cache / "snapshots" / "abc")
    assert run_app(["predict", str(run), "100"]) == 0


def test_the_table_of_a_run_is_not_fetched_from_the_hub(run, monkeypatch):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["path"] = "hf://datasets/owner/name/table.csv"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(preparation, "read_splits", lambda *_: pytest.fail("this would have fetched it"))
    assert preparation.training_rows(run) == []


def test_a_folder_chooses_no_attention_code_from_the_hub(llama_folder, tmp_path):
    """transformers takes `attn_implementation: owner/name` for a kernel to fetch and run."""
    model = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    settings = json.loads((model / "config.json").read_text())
    for key in ("attn_implementation", "_attn_implementation"):
        (model / "config.json").write_text(json.dumps(settings | {"nested": {key: "owner/kernel"}}))
        with pytest.raises(ModelError, match=rf"config.json' asks for the code 'owner/kernel' from the hub \({key}\)"):
            load_model(ModelConfig(name=str(model)), 0)


def test_an_adapter_that_is_no_run_does_not_choose_its_base(lora, tmp_path):
    model = Path(shutil.copytree(lora / "model", tmp_path / "model"))
    (model / "adapter.json").unlink()
    with pytest.raises(ModelError, match="holds an adapter of peft, which names its base itself"):
        load_model(ModelConfig(name=str(model)), 0)


def test_the_option_takes_names_only():
    assert load_config(overrides={"model.trust_remote_code": ["a/b"]}).model.trust_remote_code == ("a/b",)
    with pytest.raises(Exception, match="model.trust_remote_code = True"):
        load_config(overrides={"model.trust_remote_code": True})


def test_trained_with_code_answers_with_code(llama_folder, tmp_path, witness):
    base = with_code(Path(shutil.copytree(llama_folder, tmp_path / "base")), witness)
    run = train(base, tmp_path / "run", **{"model.trust_remote_code": [str(base)]})
    assert (run / "predictions.jsonl").exists()
