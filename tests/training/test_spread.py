"""A model in shards (FSDP2) takes the steps of one process; what it saves, any number of processes goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import spread_cases
import torch

import several
from conftest import build_model
from seqtune.config import load_config
from seqtune.errors import ConfigError
from seqtune.training.checkpoints import newest_whole
from seqtune.training.spread import _blocks, shard_like, whole

BROKEN = [name for name in spread_cases.CASES if name.startswith("broken")]
WHOLE = [name for name in spread_cases.CASES if name not in BROKEN]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, monkeypatch_module) -> dict[str, Path]:
    """What one, two and three processes made of the cases, and of one another's broken trainings."""
    top = tmp_path_factory.mktemp("spread")

    def several_ran(width: int, name: str, cases: list[str]) -> None:
        several.run(width, [spread_cases.__file__, str(top / name), *cases], top)

    def go_on(before: str, name: str) -> None:
        for case in BROKEN:
            shutil.copytree(top / before / case, top / name / case)

    for case in spread_cases.CASES:
        spread_cases.run(case, top / "one" / case)
    for case in BROKEN:
        spread_cases.finish(case, top / "unbroken" / case)
    several_ran(2, "two", list(spread_cases.CASES))
    for before, name in (("one", "one, then two"), ("two", "two, then one"), ("two", "two, then three")):
        go_on(before, name)
    several_ran(3, "three", ["muon", "lora", "fewer rows than processes"])
    several_ran(2, "one, then two", BROKEN)
    several_ran(3, "two, then three", BROKEN)
    for case in BROKEN:
        spread_cases.run(case, top / "two, then one" / case)
    return {path.name: path for path in top.iterdir()}


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread_cases.seqtune.training.loop, "LOG_EVERY", 1)
        yield patch


def curve(folder: Path) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Steps, losses, and what the last validation saw of the weights."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    seen = [line["validation"]["exact_match"] for line in lines if "validation" in line]
    return [line["step"] for line in losses], np.array([line["loss"] for line in losses]), np.array(seen)


def assert_same(one: Path, other: Path) -> None:
    (steps, losses, seen), (their_steps, their_losses, they_saw) = curve(one), curve(other)
    assert steps == their_steps == list(range(1, len(steps) + 1))
    np.testing.assert_allclose(losses, their_losses, rtol=2e-5)
    np.testing.assert_allclose(seen, they_saw, rtol=2e-5)  # of the weights, or of their means
    norms, theirs = (json.loads((folder / "norms.json").read_text()) for folder in (one, other))
    assert norms.keys() == theirs.keys()
    np.testing.assert_allclose(list(norms.values()), list(theirs.values()), rtol=2e-3)  # Adam divides noise by noise


@pytest.mark.slow
@pytest.mark.parametrize("case", WHOLE)
def test_shards_take_the_steps_of_one_process(folders, case):
    for several_ran in [path for width in ("two", "three") if (path := folders[width] / case).exists()]:
        assert_same(folders["one"] / case, several_ran)


@pytest.mark.slow
def test_each_process_holds_its_share_of_weights_and_optimizer_state(folders):
    [alone] = [json.loads(path.read_text()) for path in (folders["one"] / "muon").glob("held-*.json")]
    for name, width in (("two", 2), ("three", 3)):
        held = [json.loads(path.read_text()) for path in (folders[name] / "muon").glob("held-*.json")]
        assert len(held) == width
        assert max(held) < 1.1 * alone / width
        assert sum(held) >= alone


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("way", ["one, then two", "two, then one", "two, then three"])
def test_any_number_of_processes_goes_on_from_a_checkpoint(folders, case, way):
    broken = folders[way.split(",")[0]] / case
    found = newest_whole(broken / "checkpoints")
    assert found is not None
    assert found.name == f"step-{spread_cases.SAVED:08d}"
    assert_same(folders["unbroken"] / case, folders[way] / case)


SPOILED = """
import torch
from accelerate import Accelerator
from conftest import build_model
from seqtune.training.divergence import DivergedError, check_weights
from seqtune.training.processes import process_state
from seqtune.training.spread import spread

state = process_state()
trained = spread(build_model("llama", 300), Accelerator(cpu=True), "fsdp").trained
name, parameter = list(trained.named_parameters())[3]
for spoiled in (0, 1):
    with torch.no_grad():
        parameter.to_local().fill_(float("nan") if state.process_index == spoiled else 0.0)
    try:
        check_weights(trained, 3)
    except DivergedError as error:
        print(name in str(error))
"""


@pytest.mark.slow
def test_a_shard_that_is_no_number_is_seen_by_all(tmp_path):
    """Else one process would go back, and the others wait for it."""
    assert [out.split() for out in several.run(2, ["-c", SPOILED], tmp_path)] == [["True", "True"]] * 2


def test_a_whole_tensor_is_its_own_shard():
    tensor = torch.ones(3, 2)
    assert whole(tensor) is tensor
    assert shard_like(tensor, torch.zeros(3, 2)) is tensor


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.optimizer": "paged_adamw"}, "train.optimizer 'paged_adamw' takes no shards"),
        ({"train.compile": True}, "train.compile does not fit train.parallel 'fsdp'"),
        ({"adapter.method": "qlora"}, "adapter.method 'qlora': its 4-bit weights cannot be shared out"),
    ],
)
def test_what_cannot_be_sharded_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        load_config(overrides={"train.parallel": "fsdp"} | settings)


def test_a_family_without_blocks_is_refused():
    model = build_model("llama", 50)
    assert len(_blocks(model)) == 2
    model._no_split_modules = set()
    with pytest.raises(ConfigError, match="does not fit LlamaForCausalLM: transformers does not say what its blocks are"):
        _blocks(model)
