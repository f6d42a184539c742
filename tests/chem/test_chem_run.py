"""A chemistry run through the real command line: split by skeleton, scored by structure, verified, drawn."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("java") is None, reason="no Java")]


def seqtune(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "seqtune", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Alkanols: few enough that a small model gets some of the held-out ones right."""
    folder = tmp_path_factory.mktemp("chem")
    stems = ["methan", "ethan", "propan", "butan", "pentan", "hexan", "heptan", "octan"]
    rows = [(f"{'C' * n}{tail}", f"{stems[n - 1]}{name}") for n in range(1, 9) for tail, name in TAILS]
    rows = [(s, n) for i, (s, n) in enumerate(rows)] * 4
    with (folder / "pairs.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("smiles", "iupac"), *rows])
    seqtune(
        "fit", "--task", "chem:smiles-to-iupac", "--data", str(folder / "pairs.csv"), "--out", str(folder / "run"),
        "--set", "data.split={method: grouped, key: skeleton, validation: 0.1, test: 0.25}", "--set", "train.max_steps=30",
        "--set", "model.adapt_vocabulary=32",
    )  # fmt: skip
    return folder


TAILS = [("O", "ol"), ("N", "amine"), ("Cl", "yl chloride"), ("C(=O)O", "oic acid"), ("F", "yl fluoride"), ("S", "ethiol")]


def test_the_run_is_scored_by_structure_beside_other_tools(run):
    metrics = json.loads((run / "run" / "metrics.json").read_text())
    assert set(metrics["baselines"]) == {
        next(n for n in metrics["baselines"] if n.startswith("openclatura")),
        "nearest training molecule",
    }
    assert 0 <= metrics["structure_accuracy"]["value"] <= metrics["skeleton_accuracy"]["value"] <= 1
    assert metrics["gold_ceiling"]["structure_accuracy"]["value"] > 0.1
    line = json.loads((run / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert line["details"]["structure"] in ("verified", "skeleton_only", "mismatch", "unparsed")
    data = json.loads((run / "run" / "data.json").read_text())
    assert data["leakage"]["test"]["same_key"] == 0
    assert "plugin: chem:smiles-to-iupac" in (run / "run" / "task.yaml").read_text()


def test_verified_answers_are_the_ones_that_opsin_reads_back(run, tmp_path):
    from rdkit import Chem

    from seqtune.chem.opsin import living

    (tmp_path / "m.smi").write_text("CCCO one\nCCCCN two\nC1CC three\nCCO.Cl four\nCC>>CO five\n")
    out, grid = tmp_path / "a.csv", tmp_path / "g.png"
    seqtune(
        "predict", str(run / "run"), "--file", str(tmp_path / "m.smi"), "--num-beams", "5", "--verify", "--abstain", "--out", str(out),
        "--grid", str(grid),
    )  # fmt: skip
    rows = list(csv.DictReader(out.open()))
    assert [r["id"] for r in rows] == ["one", "two", "three", "four", "five"]
    assert [r["status"] for r in rows[2::2]] == ["invalid_smiles", "reaction"]
    assert rows[3]["input_status"] == "mixture"
    assert grid.read_bytes()[:4] == b"\x89PNG"
    for row in rows:
        assert row["status"] in ("verified", "abstained", "invalid_smiles", "reaction", "unfinished")
        assert bool(row["prediction"]) == (row["status"] == "verified")
        if row["status"] == "verified":
            read = Chem.MolFromSmiles(living().read([row["prediction"]])[0])
            assert Chem.MolToInchi(read) == Chem.MolToInchi(Chem.MolFromSmiles(row["input"]))


def test_a_verified_answer_is_one_line(run):
    done = seqtune("predict", str(run / "run"), "CCCO", "CCO.Cl", "--num-beams", "4", "--verify")
    assert len(done.stdout.splitlines()) == 2
    shown = seqtune("predict", str(run / "run"), "CCCO", "--num-beams", "4", "--num-return", "3")
    assert [line.split("\t")[0] for line in shown.stdout.splitlines()] == ["1"] * 3


def test_evaluate_reports_what_verifying_was_worth(run):
    done = seqtune(
        "evaluate", str(run / "run"), str(run / "pairs.csv"), "--num-beams", "3", "--verify", "--no-baselines", "--json"
    )
    metrics = json.loads(done.stdout)
    report = metrics["verification"]
    assert report["num_hypotheses"] == 3
    assert report["coverage"]["value"] >= report["top1_verified"]["value"]
    assert "baselines" not in metrics
    plain = seqtune("evaluate", str(run / "run"), str(run / "pairs.csv"), "--num-beams", "3", "--no-baselines", "--json")
    assert json.loads(plain.stdout)["exact_match"]["value"] == report["exact_match"]["top1"]["value"]


def test_check_shows_how_near_the_held_out_rows_are(run):
    done = seqtune(
        "check", str(run / "pairs.csv"), "--task", "chem:smiles-to-iupac", "--json",
        "--set", "data.split={method: grouped, key: scaffold, test: 0.3}",
    )  # fmt: skip
    near = json.loads(done.stdout)["neighbours"]
    assert sum(near["counts"]) == near["num_rows"] > 0
    assert near["edges"][0] == 0.0
    assert near["edges"][-1] == 1.0


def test_a_model_without_a_task_can_be_given_one(llama_folder, tmp_path):
    (tmp_path / "t.csv").write_text("input,output\nethanol,CCO\n")
    done = seqtune(
        "evaluate", str(llama_folder), str(tmp_path / "t.csv"), "--task", "chem:iupac-to-smiles", "--json", "--no-baselines",
        "--set", "decode.max_new_tokens=5",
    )  # fmt: skip
    assert "validity" in json.loads(done.stdout)


def test_a_plain_task_cannot_verify(run, llama_folder):
    done = seqtune("predict", str(llama_folder), "x", "--verify", "--num-beams", "2", expect=1)
    assert "this task has no verifier" in done.stderr
    done = seqtune("predict", str(llama_folder), "x", "--grid", "g.png", expect=1)
    assert "cannot be drawn" in done.stderr
