"""`fit --ray`: the steps of one process, in several of a cluster; what is lost, stopped or wrong ends as it does here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conftest import pairs, write_csv
from seqtune import runs
from seqtune.config import load_config
from seqtune.errors import RunError
from seqtune.procedures.fit import fit

ray = pytest.importorskip("ray")


@pytest.fixture
def settings(llama_folder, tmp_path):
    return {
        "data.path": str(write_csv(tmp_path / "pairs.csv", pairs(150))), "model.name": str(llama_folder), "train.epochs": 12,
        "train.batch_size": 6, "train.precision": "fp32", "train.optimizer": "adamw", "train.learning_rate": 1e-4, "train.checkpoint_every": 5,
        "train.validate_examples": 4, "decode.max_new_tokens": 4, "data.split.test": 0.02,
    }  # fmt: skip


def losses(run: Path) -> tuple[list[int], list[float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return list(found), list(found.values())


def test_a_process_gets_as_much_as_all_can_have():
    from seqtune.cluster.training import share

    assert share([(8, 0)], 2) == (2, 4, 0)
    assert share([(16, 0), (4, 0)], 3) == (3, 5, 0)  # three on the larger one; with 8 each there is room for two
    assert share([(16, 4), (16, 4), (64, 0)], 8) == (8, 4, 1)
    assert share([(16, 1), (64, 0)], 8) == (1, 16, 1)
    assert share([(0, 0), (1, 0), (1, 0)], 8) == (2, 1, 0)
    with pytest.raises(RunError, match="has no machine with a processor free"):
        share([(0, 0)], 2)


@pytest.mark.slow
def test_a_cluster_takes_the_steps_of_one_process_and_goes_on_without_a_machine(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    from seqtune.procedures.fit_on_cluster import fit_on_cluster

    here = fit(load_config(None, settings | {"out": str(tmp_path / "here")}), quiet=True)
    config = load_config(None, settings | {"out": str(tmp_path / "there")})
    run = tmp_path / "there"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(fit_on_cluster, config, cluster.address, 2)
            while not (run / "checkpoints").exists() or not runs.checkpoints(run / "checkpoints"):
                assert not future.done(), future.result()
                time.sleep(0.05)
            cluster.remove_node(nodes[0], allow_graceful=False)
            there = future.result()
    finally:
        ray.shutdown()
        cluster.shutdown()
    said = capsys.readouterr().err
    assert said.index("2 processes on the Ray cluster, each with 1 processor") < said.index("the cluster lost processes")
    assert (
        said.index("the cluster lost processes") < said.index("1 process on the Ray cluster") < said.index("resuming at step ")
    )
    (steps, found), (their_steps, theirs) = losses(here.folder), losses(run)
    assert steps == their_steps
    np.testing.assert_allclose(found, theirs, rtol=1e-4)
    assert there.metrics is not None
    assert there.metrics["num_items"] == here.metrics["num_items"]
    assert runs.verify(run) == {}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_mistake_is_said_and_an_interruption_leaves_a_checkpoint(settings, tmp_path):
    values = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "seqtune", "fit", *values, "--out", "run", "--ray", "local", "--num-workers", "2"]
    started = {
        "cwd": tmp_path, "stderr": subprocess.PIPE, "text": True,
        "env": os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)},
    }  # fmt: skip
    wrong = subprocess.run([*command, "--set", "data.input=c"], **started, check=False, timeout=200)
    assert (wrong.returncode, wrong.stderr.count("no column 'c'")) == (1, 1), wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "run").exists()
    process = subprocess.Popen(command, **started, start_new_session=True)
    while not (tmp_path / "run" / "checkpoints").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all that the command has started
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 128 + signal.SIGINT, said
    assert "a checkpoint is written: the same command with --resume goes on from there" in said
    assert not list(tmp_path.glob(".*"))
    again = subprocess.run([*command, "--resume"], **started, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resuming at step " in again.stderr
    assert runs.is_complete(tmp_path / "run")
