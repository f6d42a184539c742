"""What `docs/plan_training.py` reckons, against what a step takes: torch's profiler hears every allocation."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from measure_spread import measured
from torch._subclasses.fake_tensor import FakeTensorMode

import several

SCRIPT = Path(__file__).parents[2] / "docs" / "plan_training.py"
spec = importlib.util.spec_from_file_location("plan_training", SCRIPT)
assert spec is not None
assert spec.loader is not None
planning = importlib.util.module_from_spec(spec)
sys.modules["plan_training"] = planning
spec.loader.exec_module(planning)

SIZES = {
    "larger": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 4000},
    "llama": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 900},
    "gpt2": {"n_embd": 96, "n_layer": 4, "n_head": 4, "vocab_size": 700, "n_positions": 128},
    "opt": {"hidden_size": 64, "ffn_dim": 512, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 3000,
            "word_embed_proj_dim": 64, "max_position_embeddings": 128},
}  # fmt: skip


def plan(family: str, rows: int, length: int, share: float = 0.5, processes: int = 1, parallel: str = "ddp", size: str = ""):
    with FakeTensorMode():
        model = planning.model_of(family, SIZES[size or family])
        step = planning.take_step(model, rows, length, share, torch.float32, on_cpu=parallel == "ddp")
        return model, step, planning.memory(model, step, processes, parallel)


@pytest.mark.parametrize(("family", "rows", "length"), [("llama", 8, 96), ("llama", 1, 24), ("gpt2", 6, 128), ("opt", 4, 64)])
def test_the_planned_peak_is_the_measured_one(family, rows, length):
    """Both where activations are the most of it and where weights are."""
    _, _, found = plan(family, rows, length)
    assert found["peak"] == pytest.approx(measured("ddp", rows, length, 0.5, family, SIZES[family]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "rows", "length", "tolerance"),
    [("fsdp", 1, 16, 0.25), ("fsdp", 8, 64, 0.08), ("ddp", 1, 16, 0.02), ("ddp", 8, 64, 0.02)],
)
def test_the_planned_peak_of_each_of_two_processes_is_the_measured_one(tmp_path, parallel, rows, length, tolerance):
    """On a busy machine gloo is late with what FSDP gave it to scatter, and holds the gradients of several blocks."""
    script = str(Path(__file__).with_name("measure_spread.py"))
    several.run(2, [script, parallel, str(rows), str(length), "found.json", "llama", json.dumps(SIZES["larger"])], tmp_path)
    _, _, planned = plan("llama", rows, length, processes=2, parallel=parallel, size="larger")
    assert planned["peak"] == pytest.approx(json.loads((tmp_path / "found.json").read_text()), rel=tolerance)


def test_shards_hold_their_part():
    model, _, alone = plan("llama", 2, 32)
    _, _, shared = plan("llama", 2, 32, processes=8, parallel="fsdp")
    for name in ("weights", "optimizer", "gradients"):
        assert shared[name] == alone[name] / 8
    outside = sum(p.numel() for n, p in model.named_parameters() if ".layers." not in n)
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    assert shared["to share"] == 4 * (2 * outside + 3 * block)
    _, _, copies = plan("llama", 2, 32, processes=8, parallel="ddp")
    assert copies["to share"] == alone["gradients"]


def test_products_are_the_textbooks():
    """Six operations a weight and token (Kaplan et al. 2020), of the weights that all tokens meet, and attention's own."""
    rows, length = 4, 64
    model, step, _ = plan("llama", rows, length, share=1.0)
    met = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    attention = 3 * (2 * 2 * length * model.config.hidden_size) * model.config.num_hidden_layers  # scores and mix, 3 passes
    assert sum(work for work, _ in step.work) == pytest.approx(rows * length * (6 * met + attention * 7 / 6), rel=0.02)


def test_the_slower_of_products_and_bytes_decides():
    model, step, _ = plan("llama", 4, 64)
    fast = planning.Machine(1e15, 1e15, 1e15)
    slow_products = planning.seconds(model, step, planning.Machine(1e9, 1e15, 1e15), 2, "fsdp")
    slow_memory = planning.seconds(model, step, planning.Machine(1e15, 1e9, 1e15), 2, "fsdp")
    slow_link = planning.seconds(model, step, planning.Machine(1e15, 1e15, 1e3), 2, "fsdp")
    assert slow_products["computing"] == pytest.approx(slow_products["floating-point operations"] / 1e9, rel=1e-3)
    assert slow_memory["computing"] > 100 * planning.seconds(model, step, fast, 2, "fsdp")["computing"]
    total = sum(p.numel() for p in model.parameters())
    assert slow_link["step"] == pytest.approx(4 * 3 * total / 2 / 1e3, rel=1e-3)


@pytest.mark.slow
def test_the_command_prints_a_plan():
    settings = [f"{key}={value}" for key, value in SIZES["llama"].items()]
    rates = ["--flops", "1e12", "--bandwidth", "1e11", "--link", "1e10", "--checkpointing"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "llama", *settings, "--processes", "4", *rates],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert found["parameters"] == sum(p.numel() for p in plan("llama", 1, 8)[0].parameters())
    assert found["steps a second at most"] > 0
