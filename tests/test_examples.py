"""The example packs, found through their entry points as an installed pack would be."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rapidfuzz.distance import DamerauLevenshtein

from conftest import installed_pack
from seqtune import plugins
from seqtune.records import Prediction
from seqtune.scoring.evaluate import evaluate

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DICTIONARY = """;;; a comment
cat K AE1 T
cats K AE1 T S
read R IY1 D
read(2) R EH1 D
hello HH AH0 L OW1 # a comment
"""


@pytest.fixture
def phonemes(tmp_path, monkeypatch):
    """The pack on the path, with the metadata that pip would write from its pyproject.toml."""
    folders = installed_pack(EXAMPLES / "phonemes", tmp_path)
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    return tmp_path


def seqtune(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "seqtune", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pack_of_someone_else_plugs_in_everywhere(phonemes):
    (phonemes / "cmudict.dict").write_text(DICTIONARY)
    assert "cmudict" in seqtune("data", "--help")
    seqtune("data", "cmudict", "--file", str(phonemes / "cmudict.dict"), "--out", str(phonemes / "words.csv"))
    rows = list(csv.DictReader((phonemes / "words.csv").open()))
    assert [r["word"] for r in rows] == ["cat", "cats", "read", "hello"]
    path = phonemes / "p.jsonl"
    items = [("cat", "K AE1 T", "K AE1 T"), ("cats", "K AE1 T S", "K AE0 T"), ("hello", "HH AH0 L OW1", "HH AH L X")]
    path.write_text("".join(json.dumps({"input": w, "reference": r, "prediction": p}) + "\n" for w, r, p in items))
    metrics = json.loads(
        seqtune("score", str(path), "--task", "phonemes:english", "--train", str(phonemes / "words.csv"), "--json")
    )
    assert metrics["phoneme_error_rate"]["value"] == pytest.approx((0 + 2 / 4 + 2 / 4) / 3)
    assert metrics["phoneme_error_rate_unstressed"]["value"] == pytest.approx((0 + 1 / 4 + 1 / 4) / 3)
    assert metrics["phoneme_accuracy"]["value"] == pytest.approx(1 / 3)
    assert metrics["baselines"]["same ending"]["exact_match"]["value"] == 1.0
    verifier = plugins.find("verifiers", "phonemes:arpabet")()
    found = verifier.verify(["x"] * 4, ["K AE1 T", "K AE T", "K1 AE1", "QQ"])
    assert [v.status for v in found] == ["verified", "mismatch", "mismatch", "unparsed"]


def test_a_model_of_the_pack_verifies(phonemes, llama_folder):
    words = ["cat", "cats", "hat", "hats", "bat", "bats", "rat", "rats", "mat", "mats"]
    sounds = {w: f"{w[0].upper().replace('H', 'HH')} AE1 T" + (" S" if w.endswith("s") else "") for w in words}
    with (phonemes / "w.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("word", "phonemes"), *sounds.items()])
    run = phonemes / "run"
    seqtune(
        "fit", "--task", "phonemes:english", "--data", str(phonemes / "w.csv"), "--model", str(llama_folder), "--out", str(run),
        "--set", "train.max_steps=60", "--set", "data.split={validation: 0, test: 0}",
    )  # fmt: skip
    lines = seqtune("predict", str(run), "cat", "hats", "--num-beams", "4", "--verify", "--abstain", "--json").splitlines()
    for line in map(json.loads, lines):
        assert line["status"] in ("verified", "abstained")
        assert bool(line["prediction"]) == (line["status"] == "verified")
        assert len(line["hypotheses"]) == 4


def test_corrupted_names_have_one_or_two_errors():
    sys.path.insert(0, str(EXAMPLES / "name_repair"))
    try:
        from make_table import corrupt
    finally:
        sys.path.pop(0)
    generator = random.Random(0)
    counts = set()
    for _ in range(300):
        wrong = corrupt("2-methylpropan-1-ol", generator)
        counts.add(DamerauLevenshtein.distance(wrong, "2-methylpropan-1-ol"))
    assert counts <= {0, 1, 2, 3}  # two swaps that overlap count as three
    assert {1, 2} <= counts


def test_verdicts_reach_the_report():
    rows = [Prediction("1", "a", "b", "b", 0.0, (), "verified", {"verdict": "verified"})]
    assert evaluate(rows)["verification"]["coverage"]["value"] == 1.0


@pytest.mark.slow
def test_the_page_of_mixtures_can_be_followed(tmp_path, monkeypatch):
    page = (EXAMPLES.parent / "docs" / "mixtures.md").read_text()
    script, mixture, commands = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("python", "yaml", "sh"))
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", script], check=True)
    (tmp_path / "m.yaml").write_text(mixture)
    check, fit, evaluate = (shlex.split(line)[1:] for line in commands.splitlines())
    assert "held out" in seqtune(*check)
    seqtune(*fit, "--set", "train.max_steps=2")
    shown = seqtune(*evaluate, "--set", "mixture.test_examples=4")
    assert "unweighted means of tasks" in shown
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())["scores"]
    assert {t["task"] for t in scores["base"]["2"]["tasks"] if t["held_out"]} == {"products"}
