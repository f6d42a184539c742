"""The page's own routes: its files, what it shows of runs, pictures, and files that are answered."""

# ruff: noqa: F811 - pytest finds fixtures by the names of parameters
from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import time

import polars
import pytest
from hosting import client, hosted, make_run, run_folder, slow_steps, texts_of  # noqa: F401

from seqtune import runs
from seqtune.decoding.predictor import Predictor
from seqtune.records import Example, Hypothesis, Prediction
from seqtune.serving.limits import Limits


def ended(client, job: dict, seconds: float = 20.0) -> dict:
    end = time.monotonic() + seconds
    while job["state"] in ("waiting", "answering") and time.monotonic() < end:
        time.sleep(0.05)
        job = client.get(f"/v1/jobs/{job['id']}").json()
    return job


def table(texts: list[str], kind: str, column: str = "input") -> bytes:
    frame, out = polars.DataFrame({"number": list(range(len(texts))), column: texts}), io.BytesIO()
    write = {"csv": frame.write_csv, "tsv": lambda f: frame.write_csv(f, separator="\t"), "jsonl": frame.write_ndjson}
    {**write, "parquet": frame.write_parquet}[kind](out)
    return out.getvalue()


def test_the_page_is_small_and_asks_nobody_else(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    files = [client.get(f"/assets/{name}") for name in ("app.js", "style.css", "icon.svg")]
    assert {f.status_code for f in files} == {200}
    assert sum(len(f.content) for f in (page, *files)) < 150_000
    for text in (page.text, files[0].text, files[1].text):
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
    assert "style=" not in page.text
    assert "<script>" not in page.text
    for path in ("/assets/../index.html", "/assets/%2e%2e/index.html", "/assets/", "/assets/index.html"):
        assert client.get(path).status_code == 404


def test_what_is_said_of_runs(client, tmp_path):
    [run] = client.get("/v1/runs").json()["runs"]
    assert run["name"] == "names"
    assert (run["columns"], run["scores"], run["can_verify"], run["can_draw"]) == ([], [], False, False)
    scored = make_run(tmp_path / "scored", template="{kind} {input}:", num_beams=3)
    score = {"value": 0.5, "low": 0.2, "high": 0.8, "signature": "s"}
    runs.write_json(scored / "metrics.json", {"num_items": 2, "exact_match": score})
    found = [Hypothesis("no", -0.7, 2, True)]
    runs.write_predictions(
        scored / "predictions.jsonl",
        [
            Prediction("1", "a", "yes", "no", -0.7, tuple(found), "ok"),
            Prediction("2", "b", "no", "no", -0.1, tuple(found), "ok"),
        ],
    )
    with hosted({"scored": str(scored)}) as other:
        [run] = other.get("/v1/runs").json()["runs"]
        assert (run["columns"], run["decode"]["num_beams"], run["num_items"]) == (["kind"], 3, 2)
        assert run["scores"] == [{"name": "exact_match", "value": 0.5, "low": 0.2, "high": 0.8}]
        errors = other.get("/v1/runs/scored/errors").json()
        assert [e["reference"] for e in errors["errors"]] == ["yes"]
        assert errors["errors"][0]["confidence"] == pytest.approx(0.4966, abs=1e-4)
        assert other.get("/v1/runs/other/errors").status_code == 404


def test_pictures_are_drawn_by_the_tasks_pack(client, run_folder, monkeypatch):
    assert client.post("/v1/pictures", json={"texts": ["CCO"]}).json() == {"pictures": [""]}
    assert client.post("/v1/pictures", json={"texts": ["C"] * 65}).status_code == 400
    pytest.importorskip("rdkit")
    run = client.app.routes and client.shelf.find(None)
    monkeypatch.setattr(run.predictor, "task", type(run.predictor.task)("smiles", "iupac", "plain", "{output}", "\n", plugin="chem:smiles-to-iupac"))  # fmt: skip
    ethanol, nothing = client.post("/v1/pictures", json={"texts": ["CCO", "no molecule"]}).json()["pictures"]
    assert ethanol.startswith("<svg")
    assert nothing == ""


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_file_is_answered_as_predict_answers(client, run_folder, kind):
    texts = texts_of(70, seed=11)
    begun = client.post(f"/v1/jobs?kind={kind}&num_beams=2&column=words", content=table(texts, kind, "words"))
    assert begun.status_code == 202, begun.text
    job = ended(client, begun.json())
    assert (job["state"], job["num_done"], job["num_rows"]) == ("done", 70, 70), job
    expected = Predictor.of_run(str(run_folder), {"num_beams": 2}).predict(
        [Example(str(i), t, None) for i, t in enumerate(texts)]
    )
    lines = client.get(f"/v1/jobs/{job['id']}/answers?kind=jsonl").text.splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == [p.prediction for p in expected]
    fetched = client.get(f"/v1/jobs/{job['id']}/answers")
    assert "answers.csv" in fetched.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(fetched.text, newline="")))
    assert [row["prediction"] for row in rows[:5]] == [p.prediction for p in expected[:5]]
    assert [row["words"] for row in rows[:5]] == texts[:5]  # the table's own columns, as `predict --out` keeps them
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 200
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


@pytest.mark.parametrize(
    ("kind", "content", "error"),
    [
        ("csv", b"text\nabc\n", "the file has no column 'input'"),
        ("csv", b"input\n" + b"a\n" * 60, "the file has 61 rows; it may have 50"),
        ("parquet", b"PAR1 and nothing more", "the file cannot be read as Parquet"),
        ("jsonl", b"\n", "the file"),
    ],
)
def test_files_that_cannot_be_answered(few, kind, content, error):
    job = ended(few, few.post(f"/v1/jobs?kind={kind}", content=content).json())
    assert job["state"] == "failed"
    assert error in job["error"]
    assert "/tmp" not in job["error"]
    assert few.get(f"/v1/jobs/{job['id']}/answers").status_code == 409
    few.delete(f"/v1/jobs/{job['id']}")


@pytest.fixture(scope="module")
def few(run_folder):
    with hosted({"names": str(run_folder)}, Limits(rows=50, file=3000, jobs=2, queue=64)) as made:
        yield made


def test_a_parquet_file_that_is_large_when_unpacked(few):
    job = ended(few, few.post("/v1/jobs?kind=parquet", content=table(["a" * 9000] * 40, "parquet")).json())
    assert "the file takes more than 12,000 bytes when it is unpacked" in job["error"]
    few.delete(f"/v1/jobs/{job['id']}")


def test_limits_of_files(few, monkeypatch):
    assert few.post("/v1/jobs?kind=csv", content=b"x" * 3001).status_code == 413
    assert few.post("/v1/jobs?kind=exe", content=b"x").status_code == 400
    assert few.post("/v1/jobs?kind=csv&num_beams=50", content=b"x").status_code == 400
    slow_steps(monkeypatch)
    jobs = [few.post("/v1/jobs?kind=csv", content=table(texts_of(40), "csv")).json() for _ in range(2)]
    third = few.post("/v1/jobs?kind=csv", content=table(texts_of(4), "csv"))
    assert (third.status_code, third.json()["error"]["code"]) == (429, "too_many_jobs")
    scheduler = few.shelf.desk.scheduler
    end = time.monotonic() + 10
    while scheduler.num_active == 0 and time.monotonic() < end:
        time.sleep(0.02)
    for job in jobs:
        assert few.delete(f"/v1/jobs/{job['id']}").json()["state"] == "ended"
    time.sleep(0.3)
    assert scheduler.num_active + scheduler.num_waiting == 0, "ended jobs hold no rows"


def test_tables_that_a_killed_server_left_are_removed_by_the_next(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = subprocess.Popen(["true"])
    process.wait()
    left, living, other = (tmp_path / f"seqtune-serve-{n}-x" for n in (process.pid, os.getppid(), "notes"))
    for folder in (left, living, other):
        folder.mkdir()
        (folder / "input.csv").write_text("input\nsecret\n")
    with hosted({"names": str(run_folder)}):
        assert not left.exists()
        assert living.exists()
        assert other.exists()
        assert len(list(tmp_path.glob(f"seqtune-serve-{os.getpid()}-*"))) == 1
    assert not list(tmp_path.glob(f"seqtune-serve-{os.getpid()}-*"))
