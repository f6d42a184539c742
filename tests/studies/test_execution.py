"""How points are run: what is shared, what it costs, on which GPU, and what is said when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from toy import CONSTANT, run_here, without_validation

from conftest import pairs, write_csv
from seqtune import runs, studies
from seqtune.config import load_config
from seqtune.errors import RunError
from seqtune.studies import execution, processes


@pytest.fixture
def folder(tmp_path):
    write_csv(tmp_path / "pairs.csv", pairs(60))
    return tmp_path


@pytest.fixture
def in_process(monkeypatch):
    return run_here(monkeypatch)


def test_a_budget_in_steps_takes_over_nothing_from_one_in_epochs(folder, llama_folder, in_process):
    budgets = [{"kind": "epochs", "value": 2}, {"kind": "steps", "value": 5}]
    outcome = studies.run(
        without_validation(folder, llama_folder, {**CONSTANT, "batch_size": 8}, axes={"decode.num_beams": [1]}, budget=budgets),
        quiet=True,
    )
    steps = dict(zip(outcome.results["budget"], outcome.results["steps"], strict=True))
    assert steps == {"2 epochs": 14, "5 steps": 5}
    assert outcome.results["steps_taken_over"].to_list() == [0, 0]


def test_a_run_is_decoded_once_for_each_way_whichever_study_trained_it(folder, llama_folder, in_process):
    def study(name: str, beams: int) -> studies.Study:
        return without_validation(
            folder,
            llama_folder,
            axes={"decode.num_beams": [beams], "train.max_steps": [2]},
            name=name,
            out=str(folder / "results" / name),
        )

    first = studies.run(study("greedy", 1), quiet=True)
    assert [command[0] for command in in_process] == ["fit"]  # its own scores are the point's scores
    (point,) = studies.plan(study("beams", 2))
    assert first.results["run"].to_list() == [str(point.run)]
    assert not studies.is_done(point)
    second = studies.run(study("beams", 2), quiet=True)
    assert [command[0] for command in in_process] == ["fit", "evaluate"]
    folders = [Path(outcome.results["evaluation"][0]) for outcome in (first, second)]
    assert [json.loads((f / "decode.json").read_text())["num_beams"] for f in folders] == [1, 2]
    assert (folders[0] / "predictions.jsonl").read_bytes() == (point.run / "predictions.jsonl").read_bytes()

    killed = subprocess.Popen(["true"])
    killed.wait()
    half_written = [point.run.with_name(f".{point.run.name}{end}.{killed.pid}") for end in (".json", ".yaml")]
    half_written.append(point.evaluation / f".study.json.{killed.pid}")
    for path in half_written:
        path.touch()
    studies.run(study("beams", 2), quiet=True)
    assert not [path for path in half_written if path.exists()]


def test_a_training_that_was_begun_with_other_beams_goes_on(folder, llama_folder, in_process):
    greedy, beams = studies.plan(
        without_validation(folder, llama_folder, axes={"decode.num_beams": [1, 2], "train.max_steps": [2]})
    )
    assert execution.run_chain([greedy], 1) == []
    (greedy.run / runs.MANIFEST).unlink()  # as if it had been killed near its end
    assert execution.run_chain([beams], 1) == []
    assert load_config(beams.run / "config.yaml").decode.num_beams == 2
    assert studies.is_done(greedy)
    assert studies.is_done(beams)
    # a complete run has its scores: asking it for others is said, not ignored
    with pytest.raises(RunError, match="decode.num_beams: 2 -> 1"):
        runs.open_run(greedy.config, greedy.run, "any", resume=True, overwrite=False)


def test_a_study_without_test_rows_says_so(folder, llama_folder, in_process):
    study = without_validation(folder, llama_folder, axes={"train.max_steps": [1]})
    study.base["data"]["split"]["test"] = 0.0
    (failure,) = execution.run_chain(studies.plan(study), 1)
    assert (
        failure["error"]
        == "a study scores its points on test rows, and there were none; give data.split.test a share, such as 0.1"
    )


class Clock:
    """Time that passes when a verb runs."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def test_what_a_training_costs_is_the_sum_of_its_parts(folder, llama_folder, monkeypatch):
    (point,) = studies.plan(without_validation(folder, llama_folder, axes={"train.max_steps": [1]}))
    point.run.parent.mkdir(parents=True)
    clock = Clock()
    monkeypatch.setattr(execution, "time", clock)
    parts = iter([(30.0, 500, True), (12.0, 400, False)])

    def call(self, arguments):
        assert execution.facts(point)["wall_seconds"] is None  # a kill at this moment would leave it unknown
        seconds, peak, stopped = next(parts)
        clock.now += seconds
        self.cpu_seconds += seconds / 3
        point.run.mkdir(exist_ok=True)
        if stopped:
            raise processes.Stopped
        return peak

    monkeypatch.setattr(processes.Process, "__call__", call)
    process = processes.Process(1, None, lambda: False)  # type: ignore[arg-type]
    with pytest.raises(processes.Stopped):
        execution._train(point, [], process)
    assert execution.facts(point)["wall_seconds"] == 30.0
    execution._train(point, [], process)
    assert execution.facts(point) == {
        "wall_seconds": 42.0, "cpu_seconds": 14.0, "peak_mib": 400, "steps_taken_over": 0,
    }  # fmt: skip
    # a part that was killed: what it took is not known, so neither is the whole
    runs.write_json(execution.training_facts(point.run), {"wall_seconds": None, "peak_mib": 400, "steps_taken_over": 7})
    parts = iter([(5.0, 450, False)])
    execution._train(point, [], process)
    assert execution.facts(point) == {
        "wall_seconds": None, "cpu_seconds": None, "peak_mib": 450, "steps_taken_over": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "program", "found"),
    [
        ("0,GPU-1f, 3", "", ["0", "GPU-1f", "3"]),
        ("", "GPU-a", []),
        ("-1", "GPU-a", []),
        (None, "GPU-a\nGPU-b", ["GPU-a", "GPU-b"]),
        (None, None, []),
    ],
)
def test_which_gpus_there_are(tmp_path, monkeypatch, listed, program, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setenv("PATH", str(tmp_path))
    if program is not None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nprintf '{program}'\n")
        script.chmod(0o755)
    assert processes.visible_gpus() == found


@pytest.mark.parametrize(
    ("gpus", "jobs", "expected"),
    [("4,7", 2, ["4", "7"]), ("4,7", 3, ["4", "4", "7"]), ("4,7,9", 2, ["4", "7"]), ("", 2, ["", ""])],
)
def test_jobs_at_once_have_a_gpu_each(folder, monkeypatch, gpus, jobs, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    seen, everyone = [], threading.Barrier(jobs, timeout=60)

    def run_chain(chain, threads, stopped, gpu):
        with (folder / "lock").open("w") as lock:
            environment = processes.Process(threads, lock, stopped, gpu).environment
        everyone.wait()  # so that no job takes the slot of another one
        seen.append(environment["CUDA_VISIBLE_DEVICES"])
        return []

    monkeypatch.setattr(execution, "run_chain", run_chain)
    executor = execution.Local(jobs)
    tasks = [executor.submit([]) for _ in range(jobs)]
    assert [task.result() for task in tasks] == [[]] * jobs
    assert sorted(seen) == expected
    executor.close()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("3.7 M parameters\nerror: the folder is in the way", "the folder is in the way"),
        ("warning\nerror: 2 settings are wrong:\n  a: x\n  b: y", "2 settings are wrong:\n  a: x\n  b: y"),
        ("Traceback\nKeyError: 'x'", "KeyError: 'x'"),
        ("", ""),
    ],
)
def test_what_a_failed_verb_said_is_kept_whole(said, error):
    assert processes._last_words(said) == error


def test_processor_time_is_that_of_the_verbs_and_not_of_the_clock(tmp_path):
    process = processes.Process(1, (tmp_path / "lock").open("w"), lambda: False)
    began = os.times()
    process(["--version"])
    ended = os.times()
    used = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert process.cpu_seconds == pytest.approx(used, abs=0.05)
    assert process.cpu_seconds > 0
