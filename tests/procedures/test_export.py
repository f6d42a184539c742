"""Settings of the process, int8 weights, and exported models."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from conftest import FAMILIES, build_model, build_tokenizer, pairs, write_csv
from seqtune.config import load_config
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor
from seqtune.errors import RunError
from seqtune.procedures.export import Order, export
from seqtune.procedures.fit import fit
from seqtune.records import Example
from seqtune.runs import read_kept_tokens


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of GPT-2's shape with added pieces and a trimmed vocabulary, and its base."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = build_tokenizer("gpt2")
    build_model("gpt2", len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = load_config(
        overrides={
            "data.path": str(write_csv(folder / "pairs.csv", pairs(150))), "model.name": str(folder / "base"),
            "model.adapt_vocabulary": 8, "out": str(folder / "run"), "train.max_steps": 20, "train.batch_size": 16,
            "decode.max_new_tokens": 8,
        }
    )  # fmt: skip
    fit(config, quiet=True)
    return folder


def test_an_exported_run_predicts_what_it_predicted(finished, tmp_path):
    facts = export(finished / "run", tmp_path / "out", Order(num_verified=10))
    assert facts["num_verified"] == 10
    assert facts["num_different"] == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == facts["num_tokens"]


def test_the_full_vocabulary_comes_back(finished, tmp_path):
    """Kept rows are the trained ones, the others the base's; every text of the base is encodable as before."""
    facts = export(finished / "run", tmp_path / "out", Order(full_vocabulary=True, num_verified=5))
    kept = read_kept_tokens(finished / "run")
    base, whole, trained = (
        AutoModelForCausalLM.from_pretrained(p) for p in (finished / "base", tmp_path / "out", finished / "run" / "model")
    )
    tokenizers = [AutoTokenizer.from_pretrained(p) for p in (finished / "base", tmp_path / "out")]
    added = facts["num_tokens"] - len(tokenizers[0])
    assert added > 0
    rows = whole.get_input_embeddings().weight
    torch.testing.assert_close(rows[kept], trained.get_input_embeddings().weight)
    others = sorted(set(range(len(tokenizers[0]))) - set(kept))
    assert others
    torch.testing.assert_close(rows[others], base.get_input_embeddings().weight[others])
    text = "cyclohexane → 北京"
    assert tokenizers[1].decode(tokenizers[1](text)["input_ids"]) == text
    # on the kept tokens the logits are the run's
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        ours = whole(input_ids=torch.tensor(kept)[ids]).logits[..., kept]
        theirs = trained(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_is_refused(finished, tmp_path):
    with pytest.raises(RunError, match="is no finished run"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(RunError, match="exists and is not empty"):
        export(finished / "run", finished / "base")
    done = subprocess.run(
        [sys.executable, "-m", "seqtune", "export", str(finished / "run"), "--out", str(tmp_path / "x"), "--to", "onx"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--to 'onx' is unknown; did you mean 'onnx'?; there is: hf, peft, gguf" in done.stderr


def test_export_speaks_json(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seqtune", "export", str(finished / "run"), "--out", str(tmp_path / "x"), "--verify", "3", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["num_verified"] == 3


@pytest.mark.parametrize(
    ("family", "template", "separator", "beams"),
    [("llama", "plain", "\n", 1), *((family, 'Name "{input}" {{as}} é😀 {input}:', " -> {x}\n\n", 2) for family in FAMILIES)],
)
def test_a_pipeline_answers_one_user_message_like_predict(tmp_path, capsys, family, template, separator, beams):
    """The format goes with the tokenizer as its chat template, the search with the model: nobody needs to know the prompt."""
    tokenizer = build_tokenizer(family)
    tokenizer.chat_template = "{{ messages[0]['content'] }} of the base"
    build_model(family, len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = load_config(
        overrides={
            "data.path": str(write_csv(tmp_path / "pairs.csv", pairs(60))), "model.name": str(tmp_path / "base"),
            "format.template": template, "format.separator": separator, "decode.num_beams": beams, "train.max_steps": 8,
            "data.split": {"validation": 0, "test": 0}, "decode.max_new_tokens": 12, "out": str(tmp_path / "run"),
        }
    )  # fmt: skip
    fit(config, quiet=True)
    export(tmp_path / "run", tmp_path / "whole", Order(full_vocabulary=True))
    texts = ["101", "one two", "7", "a  b"]
    task = Task.load(tmp_path / "run" / "task.yaml")
    for folder in (tmp_path / "run" / "model", tmp_path / "whole"):
        predictor = Predictor.of_model(str(folder), task, config.decode)
        expected = [p.prediction for p in predictor.predict([Example("1", text, None) for text in texts])]
        ask = pipeline("text-generation", model=str(folder), device="cpu", dtype=torch.float32)
        found = [ask([{"role": "user", "content": text}])[0]["generated_text"][-1]["content"].strip() for text in texts]
        assert found == expected
    expected = Predictor.of_run(str(tmp_path / "run")).predict([Example("1", "an input", None)])[0].prediction
    assert said_by_the_card(tmp_path / "run", capsys) == [expected] * 2


def said_by_the_card(run, capsys):
    """What the Python code of a run's card prints."""
    blocks = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    capsys.readouterr()
    for block in blocks:
        exec(block.replace("RUN", str(run)).replace('"..."', '"kind"'), {})
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_a_format_that_needs_other_columns_has_no_chat_template(tmp_path, llama_folder, capsys):
    rows = [(a, "kind", b) for a, b in pairs(40)]
    config = load_config(
        overrides={
            "data.path": str(write_csv(tmp_path / "t.csv", rows, ("input", "kind", "output"))), "model.name": str(llama_folder),
            "format.template": "{kind} {input}", "train.max_steps": 1, "data.split": {"validation": 0, "test": 0},
            "out": str(tmp_path / "run"),
        }
    )  # fmt: skip
    fit(config, quiet=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").chat_template is None
    asked = Example("1", "an input", None, {"kind": "kind"})
    assert said_by_the_card(tmp_path / "run", capsys) == [
        Predictor.of_run(str(tmp_path / "run")).predict([asked])[0].prediction
    ]
