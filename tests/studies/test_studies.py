"""Studies: points, names of runs, resuming, failures, tables."""

from __future__ import annotations

import fcntl
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import polars
import pytest
from scipy import stats
from toy import CONSTANT, run_here, study_file, without_validation

from conftest import pairs, write_csv
from seqtune import runs, studies
from seqtune.cli.app import run_app
from seqtune.errors import ConfigError, RunError
from seqtune.procedures.fit import fit
from seqtune.records import Prediction
from seqtune.report.page import write_report
from seqtune.runs import write_predictions
from seqtune.scoring import significance
from seqtune.scoring.evaluate import compare as compare_files
from seqtune.scoring.evaluate import evaluate, read_predictions
from seqtune.studies import conduct, execution, processes, times
from seqtune.studies.points import chains as execution_chains
from seqtune.studies.points import points_of, read_search
from seqtune.studies.tables import compare
from seqtune.training.log import kept_validation, read_log, validations


@pytest.fixture
def folder(tmp_path):
    write_csv(tmp_path / "pairs.csv", pairs(120))
    return tmp_path


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
        ({"axes": {"train.seed": [0, 1]}}, "train.seed is no axis of a study, because `seeds` sets it"),
        ({"axes": {}, "points": []}, "needs axes, a list of points, or a search"),
        ({"search": {"trials": 3, "space": {"train.clip": [1.0, 2.0]}}}, "leave out axes and points"),
        ({"axes": {}, "search": {"trials": 3, "space": {"train.clip": [1.0]}}}, "a search takes one seed"),
        (
            {"axes": {}, "seeds": [0], "search": {"trials": 3, "space": {"train.clap": [1.0]}}},
            "train.clap: no setting of that name",
        ),
        (
            {"axes": {}, "seeds": [0], "search": {"trials": 3, "space": {"train.clip": {"low": 2, "high": 1}}}},
            "must be below high",
        ),
        (
            {"axes": {}, "seeds": [0], "search": {"trials": 3, "space": {"train.clip": {"low": 0, "high": 1, "log": True}}}},
            "starts above 0",
        ),
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


def test_a_score_that_is_undefined_for_a_seed_has_no_mean():
    rows = [{"x": "a", "seed": s, "bleu_char": v, "bleu_char_low": v, "bleu_char_high": v} for s, v in ((0, 0.5), (1, None))]
    (row,) = studies.summarise(polars.DataFrame(rows)).iter_rows(named=True)
    assert row == {"x": "a", "seeds": 2, "bleu_char": None, "bleu_char_low": None, "bleu_char_high": None}


def test_the_validation_of_the_kept_weights_is_the_first_of_the_best(tmp_path):
    assert kept_validation(read_log(tmp_path)) is None
    found = [
        {"exact_match": 0.1, "edit_similarity": 0.9, "num_items": 50},
        {"exact_match": 0.2, "edit_similarity": 0.5, "num_items": 10},
        {"exact_match": 0.2, "edit_similarity": 0.5, "num_items": 20},
        {"exact_match": 0.2, "edit_similarity": 0.4, "num_items": 90},
    ]
    lines = [json.dumps({"step": i, "validation": v}) + "\n" for i, v in enumerate(found)]
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 0, "loss": 1.0}) + "\n" + "".join(lines) + '{"step": 9, "valid')
    log = read_log(tmp_path)
    assert validations(log) == found
    assert kept_validation(log) == found[1]


@pytest.mark.parametrize(
    ("minutes", "shares", "unequal"),
    [
        ([1.0, 1.0], [0.9, 0.3], True),  # the machine was busy: one point did a third of the other's work
        ([1.0, 1.0], [0.9, 0.8], False),
        ([None, None], [0.9, 0.3], False),  # equal in steps, however long they took
        ([1.0, 1.0], [0.9, None], False),  # not known
        ([1.0, 1.0], [0.25, 0.23], False),  # equal, and far too little
    ],
)
def test_points_that_got_unequal_shares_of_the_machine_are_not_tested(tmp_path, minutes, shares, unequal):
    """A busy machine once gave 5 steps to one point and 73 to the other, and the table said p = 0.0001."""
    rows = []
    for i, (limit, share) in enumerate(zip(minutes, shares, strict=True)):
        answers = [Prediction(str(n), f"in {n}", "right", "right" if i else "wrong", 0.0, (), "ok") for n in range(20)]
        (tmp_path / str(i)).mkdir()
        write_predictions(tmp_path / str(i) / "predictions.jsonl", answers)
        scores = {f"{name}{end}": float(i) for name in ("exact_match", "edit_similarity") for end in ("", "_low", "_high")}
        rows.append(
            {
                "x": i,
                "seed": 0,
                **scores,
                "max_minutes": limit,
                "cpu_share": share,
                "run": f"run-{i}",
                "evaluation": str(tmp_path / str(i)),
            }
        )
    results = polars.DataFrame(rows, schema_overrides={"max_minutes": polars.Float64, "cpu_share": polars.Float64})
    found = compare(results).row(0, named=True)
    assert found["difference"] == 1.0
    assert (found["p_value"] is None, found["p_adjusted"] is None) == (unequal, unequal)
    assert found["note"] == ("unequal effort: 30% and 90% of a processor" if unequal else "")
    for name, frame in (("results", results), ("summary", studies.summarise(results)), ("comparisons", compare(results))):
        frame.write_csv(tmp_path / f"{name}.csv")
    (tmp_path / "study.yaml").write_text("name: dates and names\n")
    page = write_report(tmp_path).read_text()
    assert "<h1>dates and names</h1>" in page
    assert ("points with a limit of minutes got between 30% and 90% of a processor" in page) == unequal
    assert ("0 of 0 paired comparisons differ" in page) == unequal
    assert ("no point with a limit of minutes got more than 25% of a processor" in page) == (shares == [0.25, 0.23])


def test_runs_of_studies_lie_apart_from_a_persons_own(folder, llama_folder):
    (point, *_) = studies.plan(studies.load_study(study_file(folder, llama_folder)))
    assert point.run.parent.name == "study-runs"
    old = point.run.parent.with_name("runs")
    old.mkdir(parents=True)
    (old / "0a1b.lock").touch()  # an earlier version has put them there
    assert studies.plan(studies.load_study(study_file(folder, llama_folder)))[0].run.parent == old


def test_beyond_16_points_all_are_compared_with_the_best_by_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(significance, "NUM_SWAPS", 100)
    rows = []
    for i in range(17):
        folder = tmp_path / str(i)
        folder.mkdir()
        write_predictions(folder / "predictions.jsonl", [Prediction("1", "in", "right", "wrong", 0.0, (), "ok")])
        validation = {"validation_exact_match": float(i == 3), "validation_edit_similarity": 0.5}
        test = {"exact_match": float(i == 5), "edit_similarity": float(i == 5)}
        rows.append({"x": i, "seed": 0} | test | validation | {"run": f"run-{i}", "evaluation": str(folder)})
    assert set(studies.compare(polars.DataFrame(rows))["a"]) == {"x 3"}
    unvalidated = [row | {"validation_exact_match": None} if row["x"] == 7 else row for row in rows]
    assert set(studies.compare(polars.DataFrame(unvalidated))["a"]) == {"x 5"}


@pytest.mark.slow
def test_when_nothing_can_be_run_it_says_why(folder, llama_folder, capsys):
    path = study_file(folder, llama_folder, axes={"model.name": ["./absent"]}, seeds=[0])
    assert run_app(["study", str(path)]) == 1
    assert "no point of 'toy' could be run; first: the model folder './absent' does not exist" in capsys.readouterr().err


@pytest.fixture
def in_process(monkeypatch):
    return run_here(monkeypatch)


def test_a_study_runs_once_lists_failures_and_tabulates(folder, llama_folder, in_process, capsys):
    def seqtune(*arguments: str) -> str:
        assert run_app(["study", str(path), *arguments]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    points = [{"train.learning_rate": 1e-3}, {"model.name": "./absent"}, {"train.learning_rate": 1e-3, "decode.num_beams": 2}]
    path = study_file(folder, llama_folder, axes={}, points=points)
    first = json.loads(seqtune("--json"))
    assert (first["points"], len(first["failures"])) == (4, 2)
    assert first["failures"][0]["error"] == "failed"
    out = folder / "results" / "toy"
    results = polars.read_parquet(out / "results.parquet")
    assert polars.read_csv(out / "results.csv").height == results.height == 4
    assert results["steps"].to_list() == [3] * 4
    assert (results["flops"] == 6 * results["tokens"] * results["parameters"]).all()
    summary = polars.read_csv(out / "summary.csv")
    assert summary["seeds"].to_list() == [2, 2]
    assert polars.read_csv(out / "comparisons.csv").height == 2
    page = (out / "report.html").read_text()
    assert "equal for all points: 3 steps" in page
    assert "Loss against tokens read" in page
    # nothing is run twice; a run that lost its end is finished
    runs = sorted(folder.glob("results/study-runs/*/manifest.json"))
    assert len(runs) == 2
    times = [p.stat().st_mtime_ns for p in runs]
    runs[0].unlink()
    seqtune()
    assert runs[1].stat().st_mtime_ns == times[1]
    assert runs[0].exists()
    assert seqtune("--export", str(folder / "copy.zip")).endswith("copy.zip: 4 points")
    with zipfile.ZipFile(folder / "copy.zip") as archive:
        names = archive.namelist()
        archive.extractall(folder / "copy")
    assert {"README.md", "study.yaml", "results.csv", "comparisons.csv", "report.html"} <= set(names)
    assert not [n for n in names if n.endswith((".safetensors", "pairs.csv"))]
    for stored in (folder / "copy" / "runs").rglob("predictions.jsonl"):
        again = evaluate(read_predictions(stored))
        assert again["exact_match"] == json.loads((stored.parent / "metrics.json").read_text())["exact_match"]
    assert "6 points, 4 done; time left with 1 at once: " in seqtune("--plan")


def test_an_axis_of_lengths_is_one_training_scored_along_the_way(folder, llama_folder, in_process):
    study = without_validation(folder, llama_folder, axes={"train.epochs": [3, 1, 2]})
    points = studies.plan(study)
    assert studies.shared_prefixes(points) == ["3 trainings that differ in length alone are 1, scored along the way"]
    outcome = studies.run(study, quiet=True)
    assert [Path(c[1]).stem for c in in_process] == [points[i].run.name for i in (1, 2, 0)]  # shortest first
    taken = dict(zip(outcome.results["train.epochs"], outcome.results["steps_taken_over"], strict=True))
    steps = dict(zip(outcome.results["train.epochs"], outcome.results["steps"], strict=True))
    assert taken == {1: 0, 2: steps[1], 3: steps[2]}
    # the same weights and answers as a training of its own, to the bit
    alone = points[0].config.model_copy(update={"out": str(folder / "alone")})
    fit(alone, quiet=True)
    for name in ("model/model.safetensors", "predictions.jsonl"):
        assert (folder / "alone" / name).read_bytes() == (points[0].run / name).read_bytes()
    log = [json.loads(line) for line in (points[0].run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [steps[1], steps[2], steps[3]]


@pytest.mark.parametrize(
    ("train", "validation", "reason"),
    [
        ({"warmup": 0}, 0.0, "train.schedule 'cosine' spreads the rates"),
        ({"schedule": "constant"}, 0.0, "train.warmup is a share of the length"),
        (CONSTANT, 0.1, "data.split.validation 0 leaves them out"),
        (CONSTANT | {"max_minutes": 1}, 0.0, "train.max_minutes ends it at a time"),
    ],
)
def test_why_trainings_of_other_lengths_begin_anew_is_said(folder, llama_folder, train, validation, reason):
    study = without_validation(folder, llama_folder, train, axes={"train.epochs": [1, 2]})
    study.base["data"]["split"]["validation"] = validation
    points = studies.plan(study)
    assert len(execution_chains(points)) == 2
    assert reason in studies.shared_prefixes(points)[0]


def test_points_that_do_not_differ_in_length_need_no_word(folder, llama_folder):
    assert studies.shared_prefixes(studies.plan(without_validation(folder, llama_folder))) == []


def test_another_process_that_trains_the_same_run_is_waited_for(folder, llama_folder, in_process):
    point = studies.plan(without_validation(folder, llama_folder, axes={"train.max_steps": [2]}))[0]
    point.run.parent.mkdir(parents=True)
    with point.run.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        asked = []
        with pytest.raises(processes.Stopped):  # it asks whether to go on waiting, and does nothing else
            execution.run_chain([point], 1, lambda: asked.append(1) or len(asked) > 2)
        assert (len(asked), in_process) == (3, [])
    assert execution.run_chain([point], 1) == []
    assert studies.is_done(point)


@pytest.mark.slow
def test_a_point_that_is_stopped_has_a_checkpoint_and_goes_on_from_it(folder, llama_folder):
    study = without_validation(folder, llama_folder, axes={"train.max_steps": [200]}, budget={"kind": "epochs", "value": 1000})
    point = studies.plan(study)[0]
    log = point.run / "log.jsonl"
    with pytest.raises(processes.Stopped):
        execution.run_chain([point], 1, lambda: log.exists() and log.read_text().count("\n") > 1)
    saved = runs.latest_checkpoint(point.run / "checkpoints")
    assert saved is not None
    assert not studies.is_done(point)
    assert execution.run_chain([point], 1) == []
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 200
    assert execution.facts(point)["peak_mib"] > 100


MANY_EPOCHS = {"kind": "epochs", "value": 10_000}


def wait_until(happened, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_on_a_cluster_the_same_runs_come_out(folder, llama_folder):
    pytest.importorskip("ray")
    study = without_validation(folder, llama_folder, axes={"train.max_steps": [1]}, seeds=[0, 1], jobs=2)
    with pytest.raises(RunError, match=r"no Ray cluster answers at '127.0.0.1:1' \(.*refused\); give host:port"):
        studies.run(study, ray="127.0.0.1:1", quiet=True)
    too_large = study.model_copy(update={"cpus": 10_000})
    with pytest.raises(RunError, match="a task wants 10000 processors and 0 GPUs; the largest machine"):
        studies.run(too_large, ray="local", quiet=True)
    # a task that is asked to stop leaves a checkpoint behind
    long = studies.plan(without_validation(folder, llama_folder, axes={"train.max_steps": [5000]}, budget=MANY_EPOCHS))[0]
    cluster = pytest.importorskip("seqtune.cluster.tasks").Tasks(
        "local", 1, 0.0, Path(study.out) / "study.yaml", execution.run_chain, processes.Stopped
    )
    task = cluster.submit([long])
    wait_until(lambda: (long.run / "log.jsonl").exists() or task.done())
    task.stop()
    wait_until(task.done)
    with pytest.raises(processes.Stopped):
        task.result()
    assert runs.latest_checkpoint(long.run / "checkpoints")
    outcome = studies.run(study, ray="local", quiet=True)
    assert (outcome.results.height, outcome.failures) == (2, [])
    assert not list(Path(study.out).glob(".stop-*"))
    here = [point.config.model_copy(update={"out": str(folder / point.run.name)}) for point in studies.plan(study)]
    for config, run in zip(here, outcome.results["run"], strict=True):
        fit(config, quiet=True)
        assert (Path(run) / "predictions.jsonl").read_bytes() == (Path(config.out) / "predictions.jsonl").read_bytes()


def test_a_chain_that_a_cluster_loses_is_listed_and_the_others_go_on(folder, llama_folder):
    class Lost(FakeExecutor):
        def submit(self, chain):
            return LostTask()

    class LostTask:
        def done(self):
            return True

        def result(self):
            raise RunError("the worker died")

    points = studies.plan(without_validation(folder, llama_folder))
    failures = conduct._run_grid(points, Lost(), lambda *_: None, folder)
    assert [f["error"] for f in failures] == ["the worker died"] * len(points)
    assert {json.loads(f["point"])["decode.num_beams"] for f in failures} == {1, 2}


class FakeTask:
    """A training that validates as its learning rate deserves, one validation each time it is looked at."""

    def __init__(self, point, length: int):
        self.log, self.left, self.stopped = point.run / "log.jsonl", length, False
        self.height = 1 - abs(np.log10(point.config.train.learning_rate) + 3) / 4
        self.log.parent.mkdir(parents=True)
        self.point, self.length = point, length

    def done(self):
        if self.left and not self.stopped:
            self.left -= 1
            value = self.height * (1 - self.left / (2 * self.length))
            with self.log.open("a") as log:
                log.write(
                    json.dumps({"step": 1, "validation": {"edit_similarity": value, "exact_match": 0.0, "num_items": 5}}) + "\n"
                )
        return self.stopped or not self.left

    def result(self):
        if self.stopped:
            raise processes.Stopped
        return []

    def stop(self):
        self.stopped = True


class FakeExecutor:
    width = 1

    def __init__(self, limit: int = 1000):
        self.tasks, self.limit = [], limit

    def submit(self, chain):
        if len(self.tasks) == self.limit:
            raise KeyboardInterrupt
        self.tasks.append(FakeTask(chain[0], 5))
        return self.tasks[-1]


def search_file(folder: Path, llama: Path, **changes) -> Path:
    space = {"train.learning_rate": {"low": 1e-6, "high": 1.0, "log": True}, "train.clip": [0.5, 1.0]}
    search = {"trials": 20, "space": space} | changes
    return study_file(folder, llama, axes={}, seeds=[0], search=search)


def test_a_search_nears_the_best_prunes_and_goes_on_after_a_kill(folder, llama_folder, monkeypatch):
    searching = pytest.importorskip("seqtune.studies.search")
    monkeypatch.setattr(searching, "POLL_SECONDS", 0.0)
    study = studies.load_study(search_file(folder, llama_folder))
    Path(study.out).mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        searching.search(study, FakeExecutor(limit=8), lambda *_: None)
    executor = FakeExecutor()
    assert searching.search(study, executor, lambda *_: None) == []
    found = read_search(study)
    assert (len(found["trials"]), len(executor.tasks)) == (20, 12)
    states = [t["state"] for t in found["trials"]]
    assert {"complete", "pruned"} == set(states)
    assert all(len(t.log.read_text().splitlines()) < 5 for t in executor.tasks if t.stopped)  # stopped before their end
    later = [abs(np.log10(t["values"]["train.learning_rate"]) + 3) for t in found["trials"]]
    assert np.median(later[10:]) < np.median(later[:5])  # the guesses get better
    complete = [t for t in found["trials"] if t["state"] == "complete"]
    assert found["best"] == max(complete, key=lambda t: t["validation"])
    assert found["best"]["validation"] > 0.85
    assert found["importances"]["train.learning_rate"] > 0.8
    assert [p.values["train.learning_rate"] for p in points_of(study)] == [t["values"]["train.learning_rate"] for t in complete]
    with (Path(study.out) / "search.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is running the search"):
            searching.search(study, FakeExecutor(), lambda *_: None)
    # more of the same search; another one in its place is refused
    more = studies.load_study(search_file(folder, llama_folder, trials=22))
    searching.search(more, FakeExecutor(), lambda *_: None)
    assert len(read_search(more)["trials"]) == 22
    other = studies.load_study(search_file(folder, llama_folder, metric="exact_match"))
    with pytest.raises(ConfigError, match="was begun with other settings"):
        searching.search(other, FakeExecutor(), lambda *_: None)
    # what the trials found does not hold for other data
    write_csv(folder / "pairs.csv", pairs(121))
    with pytest.raises(ConfigError, match="was begun with other data, another base or another version of seqtune"):
        searching.search(more, FakeExecutor(), lambda *_: None)


def test_a_search_without_validation_rows_is_refused(folder, llama_folder):
    searching = pytest.importorskip("seqtune.studies.search")
    study = without_validation(folder, llama_folder, axes={}, search={"trials": 2, "space": {"train.clip": [0.5, 1.0]}})
    Path(study.out).mkdir(parents=True)
    with pytest.raises(ConfigError, match="a search goes by the validation rows"):
        searching.search(study, FakeExecutor(), lambda *_: None)


def test_pairs_of_points_are_compared_item_by_item(tmp_path):
    generator = np.random.default_rng(0)

    def scored(name: str, share: float) -> str:
        rows = [
            Prediction(str(i), f"in {i}", "right", "right" if generator.random() < share else "wrong", 0.0, (), "ok")
            for i in range(200)
        ]
        write_predictions(tmp_path / name / "predictions.jsonl", rows)
        return str(tmp_path / name)

    for name in "abcdx":
        (tmp_path / name).mkdir()
    folders = [scored(name, share) for name, share in zip("abcd", (0.2, 0.25, 0.8, 0.3), strict=True)]
    other = [Prediction(str(i), f"other {i}", "right", "right", 0.0, (), "ok") for i in range(5)]
    write_predictions(tmp_path / "x" / "predictions.jsonl", other)
    results = polars.DataFrame(
        {"x": ["a", "b", "c", "c", "x"], "seed": [0, 0, 0, 1, 0], "evaluation": [*folders, str(tmp_path / "x")]}
    )
    table = studies.compare(results).filter(metric="exact_match")
    assert table.select("a", "b").rows() == [("x a", "x b"), ("x a", "x c"), ("x b", "x c")]  # x was scored on other items
    reference = compare_files(*(read_predictions(f"{f}/predictions.jsonl") for f in folders[:2]))["exact_match"]
    assert table.row(0, named=True)["p_value"] == pytest.approx(reference["p_value"], abs=0.02)
    mean = np.mean([[p.prediction == "right" for p in read_predictions(f"{f}/predictions.jsonl")] for f in folders[2:]])
    assert table["score_b"][1] == pytest.approx(mean)
    assert table["p_adjusted"].to_list() == pytest.approx(stats.false_discovery_control(table["p_value"].to_numpy()))


def test_the_time_left_follows_from_what_was_finished(folder, llama_folder, monkeypatch):
    study = without_validation(folder, llama_folder, {}, axes={"train.max_steps": [100, 200, 400]}, seeds=[0, 1])
    points = studies.plan(study)
    assert studies.seconds_left(points, 1) is None
    cost = {point.run: {"wall_seconds": 0.5 * point.config.train.max_steps} for point in points[:2]}
    monkeypatch.setattr(times, "facts", lambda p: cost.get(p.run, {}))
    monkeypatch.setattr(times, "is_done", lambda p: p.run in cost)
    assert studies.seconds_left(points, 1) == pytest.approx(2 * (100 + 200))
    assert studies.seconds_left(points, 2) == pytest.approx(300)
    assert studies.seconds_left(points, 8) == pytest.approx(200)  # a point is not cut in two
    minutes = studies.plan(without_validation(folder, llama_folder, {}, budget={"kind": "minutes", "value": 2}, seeds=[0]))
    assert studies.seconds_left(minutes, 1) == pytest.approx(
        2 * (120 + times.OVERHEAD_SECONDS)
    )  # two sizes; the beams share a training
    lengths = {"train.max_steps": [100, 200, 400], "train.epochs": [1000]}
    shared = studies.plan(without_validation(folder, llama_folder, axes=lengths))
    cost = {shared[0].run: {"wall_seconds": 50.0}}
    monkeypatch.setattr(times, "facts", lambda p: cost.get(p.run, {}))
    monkeypatch.setattr(times, "is_done", lambda p: p.run in cost)
    assert studies.seconds_left(shared, 1) == pytest.approx(0.5 * 300)  # one training of 400 steps, 100 of which are done


def test_the_papers_studies_are_valid():
    files = sorted((Path(__file__).parents[2] / "studies" / "paper").glob("*.yaml"))
    assert files
    for path in files:
        study = studies.load_study(path)
        assert len(studies.plan(study)) >= 2
