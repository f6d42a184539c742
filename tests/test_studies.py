"""Studies: points, names of runs, resuming, failures, tables."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import polars
import pytest
import yaml
from scipy import stats

from conftest import pairs, write_csv
from seqtune import studies
from seqtune.errors import ConfigError


def study_file(folder: Path, llama: Path, **changes) -> Path:
    content = {
        "name": "toy",
        "base": {
            "data": {"path": str(folder / "pairs.csv"), "split": {"test": 0.2, "validation": 0.1}},
            "model": {"name": str(llama)},
            "decode": {"max_new_tokens": 6},
        },
        "axes": {"data.num_examples": [20, 60], "decode.num_beams": [1, 2]},
        "seeds": [0, 1],
        "budget": {"kind": "steps", "value": 3},
        "out": str(folder / "results" / "toy"),
    } | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def folder(tmp_path):
    write_csv(tmp_path / "pairs.csv", pairs(120))
    return tmp_path


def seqtune(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "seqtune", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done


def test_the_plan_is_the_product_and_runs_are_named_by_what_decides_their_weights(folder, llama_folder):
    study = studies.load_study(study_file(folder, llama_folder))
    points = studies.plan(study)
    assert len(points) == 8
    assert [p.values["data.num_examples"] for p in points] == [20] * 4 + [60] * 4
    assert len({p.run for p in points}) == 4  # beams share the weights
    assert {p.config.train.max_steps for p in points} == {3}
    assert points[0].values["budget"] == "3 steps"
    again = studies.plan(
        studies.load_study(study_file(folder, llama_folder, name="other", out=str(folder / "results" / "other")))
    )
    assert [p.run for p in again] == [p.run for p in points]  # another study with the same points runs nothing twice
    write_csv(folder / "pairs.csv", pairs(121))
    changed = studies.plan(study)
    assert not {p.run for p in changed} & {p.run for p in points}  # other data, other runs


@pytest.mark.parametrize(
    ("kind", "value", "key", "expected"),
    [
        ("epochs", 2, "epochs", 2.0), ("minutes", 0.5, "max_minutes", 0.5), ("target_tokens", 500, "target_tokens", 500),
        ("steps", 7, "max_steps", 7),
    ],
)  # fmt: skip
def test_budgets(folder, llama_folder, kind, value, key, expected):
    study = studies.load_study(study_file(folder, llama_folder, budget={"kind": kind, "value": value}))
    assert {getattr(p.config.train, key) for p in studies.plan(study)} == {expected}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"train.epoch": [1]}}, "train.epoch: no setting of that name; did you mean 'train.epochs'"),
        ({"axes": {}, "points": []}, "needs axes, or a list of points"),
        ({"seeds": []}, "seeds"),
        ({"axis": {}}, "unknown key; did you mean 'axes'"),
        ({"budget": {"kind": "hours", "value": 1}}, "budget"),
    ],
)
def test_mistakes_are_named(folder, llama_folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        studies.load_study(study_file(folder, llama_folder, **changes))


def test_a_point_that_does_not_go_together_is_named(folder, llama_folder):
    study = studies.load_study(study_file(folder, llama_folder, axes={"adapter.method": ["layers"]}))
    with pytest.raises(ConfigError, match="need each other"):
        studies.plan(study)


@pytest.mark.slow
def test_a_study_runs_once_lists_failures_and_tabulates(folder, llama_folder):
    points = [{"train.learning_rate": 1e-3}, {"model.name": "./absent"}, {"train.learning_rate": 1e-3, "decode.num_beams": 2}]
    path = study_file(folder, llama_folder, axes={}, points=points)
    first = json.loads(seqtune("study", str(path), "--json").stdout)
    assert (first["points"], len(first["failures"])) == (4, 2)
    assert "does not exist" in first["failures"][0]["error"]
    out = folder / "results" / "toy"
    results = polars.read_parquet(out / "results.parquet")
    assert polars.read_csv(out / "results.csv").height == results.height == 4
    assert results["steps"].to_list() == [3] * 4
    assert (results["flops"] == 6 * results["tokens"] * (results["flops"] / (6 * results["tokens"]))[0]).all()
    assert (results["peak_mib"] > 100).all()
    summary = polars.read_csv(out / "summary.csv")
    assert summary["seeds"].to_list() == [2, 2]
    # nothing is run twice; a run that lost its end is finished
    runs = sorted(folder.glob("results/runs/*/manifest.json"))
    assert len(runs) == 2
    times = [p.stat().st_mtime_ns for p in runs]
    runs[0].unlink()
    seqtune("study", str(path))
    assert runs[1].stat().st_mtime_ns == times[1]
    assert runs[0].exists()
    seqtune("study", str(path), "--export", str(folder / "copy.zip"))
    with zipfile.ZipFile(folder / "copy.zip") as archive:
        names = archive.namelist()
        archive.extractall(folder / "copy")
    assert {"README.md", "study.yaml", "results.csv"} <= set(names)
    assert not [n for n in names if n.endswith((".safetensors", "pairs.csv"))]
    for stored in (folder / "copy" / "runs").rglob("predictions.jsonl"):
        again = json.loads(seqtune("score", str(stored), "--json").stdout)
        assert again["exact_match"] == json.loads((stored.parent / "metrics.json").read_text())["exact_match"]
    planned = seqtune("study", str(path), "--plan").stdout
    assert "6 points, 4 done; time left: " in planned


def test_replicates_give_a_t_interval_and_single_points_their_own():
    values = np.array([0.2, 0.5, 0.35])
    rows = [
        {"x": x, "seed": s, "exact_match": v, "exact_match_low": 0.1, "exact_match_high": 0.9, "steps": 5, "tokens": 10, "seconds": 1.0,
         "wall_seconds": 2.0, "peak_mib": 300}
        for x, s, v in [("a", 0, 0.2), ("a", 1, 0.5), ("a", 2, 0.35), ("b", 0, 0.4)]
    ]  # fmt: skip
    summary = studies.summarise(polars.DataFrame(rows))
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert summary.row(0, named=True) | {"exact_match_low": None, "exact_match_high": None} == {
        "x": "a", "seeds": 3, "exact_match": pytest.approx(0.35), "exact_match_low": None, "exact_match_high": None, "steps": 5.0,
        "tokens": 10.0, "seconds": 1.0, "wall_seconds": 2.0, "peak_mib": 300.0,
    }  # fmt: skip
    assert (summary["exact_match_low"][0], summary["exact_match_high"][0]) == pytest.approx((low, high))
    assert (summary["exact_match_low"][1], summary["exact_match_high"][1]) == (0.1, 0.9)


@pytest.mark.slow
def test_when_nothing_can_be_run_it_says_why(folder, llama_folder):
    path = study_file(folder, llama_folder, axes={"model.name": ["./absent"]}, seeds=[0])
    assert (
        "no point of 'toy' could be run; first: error: the model folder './absent'"
        in seqtune("study", str(path), expect=1).stderr
    )


def test_the_papers_studies_are_valid():
    files = sorted((Path(__file__).parents[1] / "studies" / "paper").glob("*.yaml"))
    assert files
    for path in files:
        study = studies.load_study(path)
        assert len(studies.plan(study)) >= 2
