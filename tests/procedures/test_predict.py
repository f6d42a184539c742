"""A table in shards: the same answers as at once, each row once, whatever cut the work off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import polars
import pytest

from seqtune import runs
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError, DataError, RunError
from seqtune.procedures import predict
from seqtune.procedures.evaluate import Questions
from seqtune.procedures.predict import Shards, answer_in_shards
from seqtune.records import Example, Hypothesis, Prediction
from seqtune.report.answer_table import write_shard
from seqtune.scoring.evaluate import evaluate, read_predictions
from seqtune.sections import DataConfig

ROWS = 23
TENS, ONE = Shards(rows=10), Shards(rows=1)


@pytest.fixture
def questions(llama_folder, tmp_path):
    table = tmp_path / "table.csv"
    texts = [f"word {n}, and {n % 7}" for n in range(ROWS)]
    polars.DataFrame({"name": [f"n{n}" for n in range(ROWS)], "input": texts}).write_csv(table)
    return Questions(str(table), decode={"max_new_tokens": 5, "num_beams": 2, "num_return": 2})


@pytest.fixture
def run(llama_folder):
    return str(llama_folder)


def read(folder):
    lines = [line for path in sorted(folder.glob("part-*")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_each_row_once_as_predict_answers_it_and_the_manifest_comes_last(run, questions, tmp_path):
    answered = answer_in_shards(run, questions, TENS, tmp_path / "out", quiet=True)
    assert (answered.num_rows, answered.num_shards, answered.num_found) == (ROWS, 3, 0)
    assert sum(answered.status.values()) == ROWS
    rows = read(tmp_path / "out")
    assert [row["fields"]["name"] for row in rows] == [f"n{n}" for n in range(ROWS)]
    predictor = Predictor.of_run(run, questions.decode)
    alone = predictor.predict([Example(str(n), row["input"], None) for n, row in enumerate(rows)])
    assert [row["prediction"] for row in rows] == [p.prediction for p in alone]
    listed = runs.read_json(tmp_path / "out" / "manifest.json")["files"]
    assert sorted(listed) == ["asked.json", *(f"part-0000{n}.jsonl" for n in range(3)), "rejected.jsonl"]
    assert not runs.verify(tmp_path / "out")
    (tmp_path / "out" / "part-00001.jsonl").write_text("")
    assert list(runs.verify(tmp_path / "out")) == ["part-00001.jsonl"]


def test_only_what_is_missing_is_answered_again(run, questions, tmp_path, monkeypatch):
    def cut_off(self, number, tick=None):
        if number == 2:
            raise SystemExit(143)
        return whole(self, number)

    whole = predict.Answerer.__call__
    monkeypatch.setattr(predict.Answerer, "__call__", cut_off)
    with pytest.raises(SystemExit):
        answer_in_shards(run, questions, TENS, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "manifest.json").exists()
    first = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").glob("part-*")}
    assert sorted(first) == ["part-00000.jsonl", "part-00001.jsonl"]
    monkeypatch.undo()
    answered = answer_in_shards(run, questions, TENS, tmp_path / "out", quiet=True)
    assert (answered.num_found, sum(answered.status.values())) == (2, 3)
    for name, (when, content) in first.items():
        path = tmp_path / "out" / name
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (when, content)
    answer_in_shards(run, questions, TENS, tmp_path / "uncut", quiet=True)
    assert read(tmp_path / "out") == read(tmp_path / "uncut")
    again = answer_in_shards(run, questions, TENS, tmp_path / "out", quiet=True)
    assert (again.num_found, again.status) == (3, {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decode": {"max_new_tokens": 6, "num_beams": 2, "num_return": 2}}, "decode.max_new_tokens: 5 -> 6"),
        (Shards(rows=11), "shards.rows: 10 -> 11"),
        (Shards(".csv", 10), "shards.kind: '.jsonl' -> '.csv'"),
        ({"settings": DataConfig(id="name")}, "reading.id: None -> 'name'"),
    ],
)
def test_answers_to_another_question_are_left_alone(run, questions, tmp_path, change, said):
    answer_in_shards(run, questions, TENS, tmp_path / "out", quiet=True)
    asked = (questions, change) if isinstance(change, Shards) else (replace(questions, **change), TENS)
    with pytest.raises(RunError, match="holds answers to another question") as caught:
        answer_in_shards(run, *asked, tmp_path / "out", quiet=True)
    assert said in str(caught.value)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(RunError, match="is not empty, and it is no folder of answers"):
        answer_in_shards(run, questions, TENS, tmp_path / "mine", quiet=True)


def test_another_table_or_kind_is_told(run, questions, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        answer_in_shards(run, replace(questions, data="absent.csv"), TENS, tmp_path / "out", quiet=True)
    with pytest.raises(ConfigError, match=r"kinds \.jsonl, \.csv, \.tsv, \.parquet .* asked for were '\.xml' and 10"):
        Shards(".xml", 10)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
def test_shards_of_a_table_have_the_same_columns_and_can_be_read_as_one(run, questions, tmp_path, kind):
    answer_in_shards(run, questions, Shards(kind, 10), tmp_path / kind, quiet=True)
    answer_in_shards(run, questions, TENS, tmp_path / "jsonl", quiet=True)
    pattern = str(tmp_path / kind / f"part-*{kind}")
    readers = {".csv": polars.scan_csv, ".tsv": lambda p: polars.scan_csv(p, separator="\t"), ".parquet": polars.scan_parquet}
    table = readers[kind](pattern).collect()
    answers = ["prediction", "status", "log_probability", "prediction_2", "log_probability_2", "details"]
    assert table.columns == ["name", "input", *answers]
    assert table["name"].to_list() == [f"n{n}" for n in range(ROWS)]
    texts = [(text or "") for text in table["prediction"].to_list()]
    assert texts == [row["prediction"] for row in read(tmp_path / "jsonl")]


def test_an_abstention_keeps_its_columns(tmp_path):
    found = tuple(Hypothesis(text, -1.0, 1, True) for text in "ab")
    rows = [Prediction("1", "x", None, "", 0.0, found, "abstained", {"verdict": "wrong"}, {"input": "x", "status": "s"})]
    write_shard(tmp_path / "t.parquet", rows, ["input", "status"], 3)
    table = polars.read_parquet(tmp_path / "t.parquet")
    assert table.row(0, named=True) == {
        "input": "x", "status": "s", "prediction": "", "seqtune_status": "abstained", "log_probability": "0.0000",
        "prediction_2": "a", "log_probability_2": "-1.0000", "prediction_3": "b", "log_probability_3": "-1.0000",
        "details": '{"verdict": "wrong"}',
    }  # fmt: skip


def test_shards_with_references_are_scored_as_one_when_all_are_there(run, questions, tmp_path):
    table = polars.read_csv(questions.data).with_columns(output=polars.lit("water"))
    table.write_csv(questions.data)
    answer_in_shards(run, questions, TENS, tmp_path / "out", quiet=True)
    found = read_predictions(tmp_path / "out")
    assert [p.input for p in found] == table["input"].to_list()
    assert {p.reference for p in found} == {"water"}
    assert evaluate(found)["num_items"] == ROWS
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds 3 files of answers and is not finished; give the `seqtune predict` command"):
        read_predictions(tmp_path / "out")


@pytest.mark.slow
def test_killed_at_any_moment_every_row_is_there_once(run, questions, tmp_path):
    answer_in_shards(run, questions, TENS, tmp_path / "uncut", quiet=True)
    command = [
        sys.executable, "-m", "seqtune", "predict", run, "--file", questions.data, "--out", str(tmp_path / "out"),
        "--shard-rows", "2", "--set", "decode.max_new_tokens=5", "--set", "decode.num_beams=2", "--set", "decode.num_return=2",
    ]  # fmt: skip
    num_killed = 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        there = len(list((tmp_path / "out").glob("part-*")))
        while process.poll() is None and len(list((tmp_path / "out").glob("part-*"))) < there + 3:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        num_killed += 1
    assert num_killed
    assert [row["prediction"] for row in read(tmp_path / "out")] == [row["prediction"] for row in read(tmp_path / "uncut")]
    assert not list((tmp_path / "out").glob(".part*"))


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_and_replaces_a_worker_that_dies(run, questions, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    answer_in_shards(run, questions, ONE, tmp_path / "here", quiet=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(answer_in_shards, run, questions, ONE, tmp_path / "there", ray=cluster.address, quiet=True)
            while not list((tmp_path / "there").glob("part-*")) and not future.done():
                time.sleep(0.01)
            cluster.remove_node(nodes[0], allow_graceful=False)
            assert future.result().num_rows == ROWS
    finally:
        ray.shutdown()
        cluster.shutdown()
    names = sorted(path.name for path in (tmp_path / "here").glob("part-*"))
    assert names == sorted(path.name for path in (tmp_path / "there").glob("part-*"))
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
