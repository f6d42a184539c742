"""Settings of the process, int8 weights, and exported models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import build_model, build_tokenizer, pairs, write_csv
from seqtune.config import load_config
from seqtune.errors import RunError
from seqtune.procedures.export import export
from seqtune.procedures.fit import fit
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
    facts = export(finished / "run", tmp_path / "out", num_verified=10)
    assert facts["num_verified"] == 10
    assert facts["num_different"] == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == facts["num_tokens"]


def test_the_full_vocabulary_comes_back(finished, tmp_path):
    """Kept rows are the trained ones, the others the base's; every text of the base is encodable as before."""
    facts = export(finished / "run", tmp_path / "out", full_vocabulary=True, num_verified=5)
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
        [sys.executable, "-m", "seqtune", "export", str(finished / "run"), "--out", str(tmp_path / "x"), "--to", "onnx"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--to 'onnx' is unknown; there is: hf" in done.stderr


def test_export_speaks_json(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seqtune", "export", str(finished / "run"), "--out", str(tmp_path / "x"), "--verify", "3", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["num_verified"] == 3
