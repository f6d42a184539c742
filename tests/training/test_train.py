"""The loop: invariances, resumption to the bit, optimizers against independent references."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linprog
from torch import nn
from transformers import MistralConfig, MistralForCausalLM
from transformers.pytorch_utils import Conv1D

import seqtune.procedures.fit
import seqtune.tokens.batching
import seqtune.training.defaults
import seqtune.training.loop
import seqtune.training.optim
from conftest import build_model, pairs, write_csv
from seqtune.config import load_config
from seqtune.errors import ConfigError, RunError
from seqtune.models.adapters import Adapter
from seqtune.models.loading import load_model, load_tokenizer
from seqtune.procedures.fit import fit
from seqtune.records import Encoded, Prompt
from seqtune.sections import AdapterConfig, ModelConfig, TrainConfig
from seqtune.tokens.batching import PlannedStep, StepPlan, plan_epoch
from seqtune.tokens.encode import Encoder
from seqtune.training.defaults import resolve
from seqtune.training.loop import Trainer
from seqtune.training.optim import Muon, WeightAverage, build_optimizers, learning_rate_factor, orthogonalize


def encoded_rows(folder: Path, count: int = 48) -> list[Encoded]:
    encoder = Encoder(load_tokenizer(ModelConfig(name=str(folder))), 128, 10_000)
    rows = encoder.encode([Prompt(a + "\n", b) for a, b in pairs(count)])
    return [r for r in rows if isinstance(r, Encoded)]


def train(folder: Path, out: Path, **settings) -> dict[str, torch.Tensor]:
    out.mkdir()
    model = load_model(ModelConfig(name=str(folder)), 0)
    config = TrainConfig(**{"epochs": 2, "precision": "fp32", "optimizer": "adamw", "learning_rate": 1e-3} | settings)
    Trainer(model, encoded_rows(folder), config, out).run(quiet=True)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_batch_one_times_eight_is_eight_times_one(llama_folder, tmp_path, optimizer):
    """Equal rows per step in equal order: with all 48 rows in one step, order does not matter."""
    # SGD-like sensitivity is what is tested, so Adam's epsilon must not amplify noise: compare loosely
    wide = train(llama_folder, tmp_path / "a", batch_size=48, gradient_accumulation=1, optimizer=optimizer)
    narrow = train(llama_folder, tmp_path / "b", batch_size=6, gradient_accumulation=8, optimizer=optimizer)
    assert_same(wide, narrow, 2e-4)


def test_loss_matches_hf_trainer(llama_folder, tmp_path):
    """Reference: transformers.Trainer on the same batch, labels -100 on the source; first-step loss."""
    from transformers import AutoModelForCausalLM, TrainingArguments
    from transformers import Trainer as HfTrainer

    rows = encoded_rows(llama_folder, 8)
    longest = max(len(r.input_ids) for r in rows)
    items = []
    for row in rows:
        ids = row.input_ids.tolist()
        pad = longest - len(ids)
        labels = [-100] * row.loss_start + ids[row.loss_start :] + [-100] * pad
        items.append({"input_ids": ids + [0] * pad, "attention_mask": [1] * len(ids) + [0] * pad, "labels": labels})
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "hf"), max_steps=1, per_device_train_batch_size=8, logging_steps=1, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = HfTrainer(model=AutoModelForCausalLM.from_pretrained(llama_folder), args=arguments, train_dataset=items)
    trainer.train()
    theirs = next(line["loss"] for line in trainer.state.log_history if "loss" in line)

    out = tmp_path / "ours"
    out.mkdir()
    config = TrainConfig(batch_size=8, max_steps=1, precision="fp32")
    Trainer(load_model(ModelConfig(name=str(llama_folder)), 0), rows, config, out).run(quiet=True)
    ours = json.loads((out / "log.jsonl").read_text().splitlines()[0])["loss"]
    assert ours == pytest.approx(theirs, abs=2e-4)


def test_resumed_is_uninterrupted_to_the_bit(llama_folder, tmp_path):
    whole = train(llama_folder, tmp_path / "a", batch_size=4, epochs=2, optimizer="muon")
    out = tmp_path / "b"
    out.mkdir()
    config = TrainConfig(batch_size=4, epochs=2, precision="fp32", optimizer="muon", learning_rate=1e-3, checkpoint_every=7)
    first = Trainer(load_model(ModelConfig(name=str(llama_folder)), 0), encoded_rows(llama_folder), config, out)
    steps = first.plan.steps_from

    def stop_early(done, *place):
        for number, step in enumerate(steps(done, *place), start=done):
            if number == 10:
                raise KeyboardInterrupt
            yield step

    first.plan.steps_from = stop_early
    with pytest.raises(KeyboardInterrupt):
        first.run(quiet=True)
    model = load_model(ModelConfig(name=str(llama_folder)), 0)
    second = Trainer(model, encoded_rows(llama_folder), config, out)
    assert second.restore()
    assert second.state.step == 7
    second.run(quiet=True)
    assert_same(whole, {name: p.detach() for name, p in model.named_parameters()})
    steps_logged = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps_logged == [10, 20, 24]


@pytest.mark.slow
def test_kill_nine_and_resume_ends_with_the_same_weights(llama_folder, tmp_path):
    """The real command, killed with SIGKILL while it trains, then resumed; also kills that hit before any checkpoint."""
    table = write_csv(tmp_path / "pairs.csv", pairs(150))

    def command(out: Path, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "seqtune", "fit", "--data", str(table), "--model", str(llama_folder), "--out", str(out),
            "--set", "train.batch_size=4", "--set", "train.epochs=6", "--set", "train.checkpoint_every=5",
            "--set", "train.validate_examples=4", "--set", "decode.max_new_tokens=4", *more,
        ]  # fmt: skip

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    broken = tmp_path / "broken"
    kills = 0
    for wait in (0, 6, 17):
        process = subprocess.Popen(command(broken, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            found = sorted((broken / "checkpoints").glob("step-*")) if broken.exists() else []
            if (wait == 0 and broken.exists()) or (found and int(found[-1].name[5:]) >= wait):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    assert kills == 3
    subprocess.run(command(broken, "--resume"), check=True, capture_output=True)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert_same(a, b)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    strip = [[{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in log] for log in logs]
    assert strip[0] == strip[1]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one(llama_folder, tmp_path, parallel):
    """torchrun with two CPU processes against one process: same rows per step, same loss curve, in a trimmed vocabulary."""
    table = write_csv(tmp_path / "pairs.csv", pairs(60))
    losses = []
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                "-m", "seqtune", "fit", "--data", str(table), "--model", str(llama_folder), "--out", str(out),
                "--set", "train.batch_size=5", "--set", "train.epochs=2", "--set", "train.precision=fp32",
                "--set", "train.optimizer=adamw", "--set", "decode.max_new_tokens=4", "--set", f"train.parallel={parallel}",
            ],
            check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert ("2 processes" in done.stderr) == (processes == 2)
        assert ("share the weights" in done.stderr) == (processes == 2 and parallel == "fsdp")
        assert " tokens are kept" in done.stderr
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == sorted(set(steps))  # one process writes the log
    assert len(losses[0]) >= 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_training_learns_and_keeps_the_best(llama_folder, table, tmp_path):
    config = load_config(
        overrides={
            "data.path": str(table), "model.name": str(llama_folder), "out": str(tmp_path / "run"),
            "train.epochs": 30, "train.batch_size": 16, "train.validate_every": 20, "decode.max_new_tokens": 24,
        }
    )  # fmt: skip
    fitted = fit(config, quiet=True)
    lines = [json.loads(line) for line in (fitted.folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    validations = {line["step"]: line["validation"] for line in lines if "validation" in line}
    best = max(validations, key=lambda s: (validations[s]["exact_match"], validations[s]["edit_similarity"], -s))
    assert fitted.outcome["best_step"] == best
    saved = load_file(fitted.folder / "model" / "model.safetensors")
    kept = load_file(fitted.folder / "checkpoints" / f"best-{best:08d}.safetensors")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_trackers_go_through_accelerate(llama_folder, tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    out.mkdir()
    config = TrainConfig(batch_size=16, epochs=4, trackers=["tensorboard"])
    Trainer(load_model(ModelConfig(name=str(llama_folder)), 0), encoded_rows(llama_folder), config, out).run(quiet=True)
    assert list(out.rglob("events.out.tfevents*"))
    assert (out / "log.jsonl").stat().st_size > 0


def test_early_stopping_and_time_budget_of_validation(llama_folder, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    calls = []

    def validate(model, num_items):
        calls.append(num_items)
        return {"exact_match": 0.5, "edit_similarity": 0.5, "num_items": 7.0}

    config = TrainConfig(batch_size=4, epochs=10, validate_every=3, early_stopping=2)
    rows = encoded_rows(llama_folder)
    outcome = Trainer(load_model(ModelConfig(name=str(llama_folder)), 0), rows, config, out, validate).run(quiet=True)
    assert (outcome.reason, outcome.state.step, outcome.state.best_step) == ("early_stopping", 9, 3)
    assert calls == [None, 7, 7]  # a validation that could score seven rows in time is repeated on those seven


def test_golden_loss_curve(llama_folder, tmp_path, monkeypatch):
    """Ten steps, compared with a loop written from scratch here: plain AdamW, cosine, full logits, clipping."""
    rows = encoded_rows(llama_folder, 40)
    config = TrainConfig(
        batch_size=4,
        token_budget=2048,
        epochs=1,
        max_steps=10,
        precision="fp32",
        optimizer="adamw",
        learning_rate=1e-3,
        warmup=0.2,
        seed=3,
    )
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.setattr(seqtune.training.loop, "LOG_EVERY", 1)
    trainer = Trainer(load_model(ModelConfig(name=str(llama_folder)), 0), rows, config, out)
    trainer.run(quiet=True)
    ours = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]

    model = load_model(ModelConfig(name=str(llama_folder)), 0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    theirs = []
    for step, planned in enumerate(StepPlan(np.array([len(r.input_ids) for r in rows]), config).steps_from(0, 0, 0)):
        progress = (step + 0.5) / 10
        factor = progress / 0.2 if progress < 0.2 else 0.5 * (1 + np.cos(np.pi * (progress - 0.2) / 0.8))
        optimizer.param_groups[0]["lr"] = 1e-3 * factor
        total, count = torch.zeros(()), 0
        for i in planned.batches[0]:
            ids = torch.tensor(rows[i].input_ids.astype(np.int64))[None]
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            targets = ids[0, 1:]
            nll = -logits[torch.arange(len(targets)), targets]
            total = total + nll[rows[i].loss_start - 1 :].sum()
            count += len(targets) - rows[i].loss_start + 1
        loss = total / count
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)


def test_loss_that_explodes_is_an_error(llama_folder, tmp_path):
    with pytest.raises(RunError, match="lower train.learning_rate"):
        train(llama_folder, tmp_path / "run", learning_rate=1e30, clip=None, epochs=10, batch_size=2)


def test_a_parameter_without_a_gradient_is_an_error(llama_folder, tmp_path):
    """Tokens that the rows do not hold have a gradient of zeros, which is one."""
    model = load_model(ModelConfig(name=str(llama_folder)), 0)
    model.forgotten = nn.Parameter(torch.zeros(3))
    trainer = Trainer(model, encoded_rows(llama_folder), TrainConfig(batch_size=4), tmp_path)
    with pytest.raises(
        RunError, match="1 of the parameters to train get no gradient and would stay as they are: forgotten; set"
    ):
        trainer.run(quiet=True)
    assert not (tmp_path / "checkpoints").exists()


def test_a_prefix_under_gradient_checkpointing_is_refused(llama_folder, tmp_path):
    """There nothing would be trained: refused in the settings, and by the loop, whoever calls it."""
    keys = {"adapter.method": "prefix_tuning", "train.gradient_checkpointing": True}
    with pytest.raises(
        ConfigError, match="'prefix_tuning' trains nothing with train.gradient_checkpointing; set that to false"
    ):
        load_config(overrides=keys)
    model = load_model(ModelConfig(name=str(llama_folder)), 0)
    Adapter.attach(model, AdapterConfig(method="prefix_tuning", num_virtual_tokens=2))
    virtual = np.arange(2, dtype=np.int32) + model.config.vocab_size
    rows = [Encoded(np.concatenate([virtual, r.input_ids]), r.loss_start + 2) for r in encoded_rows(llama_folder)]
    config = TrainConfig(batch_size=4, optimizer="adamw", gradient_checkpointing=True)
    with pytest.raises(RunError, match="get no gradient"):
        Trainer(model, rows, config, tmp_path).run(quiet=True)


def test_packing_is_refused_where_rows_would_be_read_otherwise(tmp_path):
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = MistralForCausalLM(MistralConfig(vocab_size=300, num_key_value_heads=4, sliding_window=8, **settings))
    rows = [Encoded(np.arange(5, 15, dtype=np.int32), 2)] * 8
    with pytest.raises(ConfigError, match="'pack' does not fit this MistralForCausalLM: .*; use 'bucket'"):
        Trainer(model, rows, TrainConfig(batching="pack"), tmp_path)


def test_muon_equals_torchs_muon(monkeypatch):
    """Reference: torch.optim.Muon, which takes Jordan's polynomial five times and iterates in bf16; hence the tolerance."""
    monkeypatch.setattr(seqtune.training.optim, "POLYNOMIALS", [(3.4445, -4.7750, 2.0315)] * 5)
    torch.manual_seed(0)
    start = torch.randn(48, 32)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = Muon([ours], lr=0.02)
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True)
    for _ in range(5):
        gradient = torch.randn(48, 32)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    assert ((ours - theirs).norm() / (ours - start).norm()).item() < 0.02


def test_muon_takes_gpt2s_conv1d_for_the_linear_layers_that_they_are():
    """Reference: the same GPT-2 with nn.Linear, whose weights are [outputs, inputs]; those of Conv1D are [inputs, outputs]."""
    conv1d = build_model("gpt2", 300).double()  # the bias of the keys has no gradient but rounding errors, which Adam blows up
    linear = copy.deepcopy(conv1d)
    for name, module in list(linear.named_modules()):
        if isinstance(module, Conv1D):
            layer = nn.Linear(*module.weight.shape, dtype=torch.float64)
            layer.weight.data, layer.bias.data = module.weight.data.T.contiguous(), module.bias.data
            parent, _, child = name.rpartition(".")
            setattr(linear.get_submodule(parent), child, layer)
    ids = torch.arange(5, 45).view(2, 20)
    for model in (conv1d, linear):
        optimizers = build_optimizers(model, TrainConfig(optimizer="muon", learning_rate=1e-3))
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    turned = {f"{name}.weight" for name, module in conv1d.named_modules() if isinstance(module, Conv1D)}
    assert len(turned) == 8
    expected = dict(linear.named_parameters())
    for name, parameter in conv1d.named_parameters():
        found = parameter.detach().T if name in turned else parameter.detach()
        torch.testing.assert_close(found, expected[name].detach(), rtol=1e-4, atol=1e-5)


def test_orthogonalize_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 20, 50), (2, 50, 20)):
        before = torch.linalg.svdvals(torch.randn(shape))
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert (before[..., 0] / before[..., -1]).min() > 3
        assert values.min() > 0.35
        assert values.max() < 1.65


def test_the_polynomials_are_those_of_least_largest_error():
    """Reference: a linear program per polynomial, on a grid of the interval that the one before leaves."""
    low, high = 0.003, 1.0
    for found in seqtune.training.optim.POLYNOMIALS:
        x = np.linspace(low, high, 4000)
        powers, one = np.stack([x, x**3, x**5], 1), np.ones((len(x), 1))
        limits = np.concatenate([np.ones(len(x)), -np.ones(len(x))])
        program = linprog([0, 0, 0, 1], np.block([[powers, -one], [-powers, -one]]), limits, bounds=[(None, None)] * 4)
        np.testing.assert_allclose(found, program.x[:3], rtol=1e-4)
        low, high = 1 - program.x[3], 1 + program.x[3]


def test_the_mean_of_weights_looks_back_over_its_window():
    """Reference: the mean written out as a sum of weighted weights."""
    weights = torch.randn(50, 3, dtype=torch.float64)
    parameter = nn.Parameter(weights[0].clone())
    average = WeightAverage([parameter], window=0.2)
    shares = []
    for step, value in enumerate(weights, 1):
        parameter.data.copy_(value)
        average.update()
        taken = 1 / (1 + 0.2 * step)
        shares = [share * (1 - taken) for share in shares] + [taken if step > 1 else 1.0]
    expected = (torch.tensor(shares, dtype=torch.float64)[:, None] * weights).sum(0)
    average.exchange()
    torch.testing.assert_close(parameter.detach(), expected)
    average.exchange()
    torch.testing.assert_close(parameter.detach(), weights[-1], rtol=0, atol=0)


def test_a_decayed_training_ends_on_its_own_weights_and_a_constant_one_on_their_mean(llama_folder, tmp_path):
    def distance(schedule: str) -> float:
        plain = train(llama_folder, tmp_path / f"{schedule}0", schedule=schedule, batch_size=4, average=0.0)
        mean = train(llama_folder, tmp_path / f"{schedule}1", schedule=schedule, batch_size=4, average=0.15)
        return max(float((plain[n] - mean[n]).abs().max()) for n in plain)

    assert 0 < distance("cosine") < 1e-5
    assert distance("constant") > 1e-4


def test_validation_and_the_kept_weights_are_the_means(llama_folder, tmp_path):
    seen = []

    def validate(model, count):
        seen.append(next(iter(model.parameters())).detach().clone())
        return {"exact_match": float(len(seen)), "num_items": 1.0}

    (tmp_path / "run").mkdir()
    model = load_model(ModelConfig(name=str(llama_folder)), 0)
    config = TrainConfig(epochs=2, batch_size=4, schedule="constant", precision="fp32", validate_every=6, average=0.15)
    trainer = Trainer(model, encoded_rows(llama_folder), config, tmp_path / "run", validate)
    trainer.run(quiet=True)
    first = next(iter(model.parameters()))
    last = load_file(tmp_path / "run/checkpoints" / f"step-{trainer.state.step:08d}" / "model.safetensors")
    raw = next(iter(last.values()))
    assert not torch.equal(seen[-1], raw)
    assert torch.equal(first.detach(), seen[-1])
    trainer.load_best()
    assert torch.equal(first.detach(), seen[-1])


def test_optimizer_groups_cover_every_parameter_once(llama_folder):
    model = load_model(ModelConfig(name=str(llama_folder)), 0)
    optimizers = build_optimizers(model, TrainConfig(optimizer="muon", learning_rate=1e-3))
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    muon = next(o for o in optimizers if isinstance(o, Muon))
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for g in muon.param_groups for p in g["params"]} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_warm_up_and_stay_in_range(schedule):
    config = TrainConfig(schedule=schedule, warmup=0.1)
    values = [learning_rate_factor(p, config) for p in np.linspace(0, 1, 201)]
    assert all(0 <= v <= 1 for v in values)
    assert values[0] < 0.02
    assert max(values) == pytest.approx(1.0, abs=0.02)
    assert values[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-6)


def test_defaults_follow_the_sizes():
    long, short = np.full(20_000, 60), np.full(500, 60)
    small, large = resolve(TrainConfig(), 4_000_000, long), resolve(TrainConfig(), 125_000_000, long)
    assert (small.optimizer, small.learning_rate, small.token_budget, small.epochs) == ("muon", 6e-3, 2048, 3)
    assert (small.warmup, small.average, large.warmup, large.average) == (0.005, 0.15, 0.03, 0.0)
    assert (large.optimizer, large.token_budget) == ("adamw", 8192)
    assert 1e-4 < (large.learning_rate or 0) < 2e-4
    assert resolve(TrainConfig(), 4_000_000, short).epochs == 50
    assert resolve(TrainConfig(), 4_000_000, np.full(5_000, 60)).epochs == 7  # 148 batches: 1,000 steps
    fixed = TrainConfig(
        optimizer="adamw", learning_rate=1e-5, token_budget=99, epochs=1, precision="fp32", batching="pack", warmup=0, average=0
    )
    assert resolve(fixed, 4_000_000, short) == fixed


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_plan_counts_fractional_epochs_and_resumes_anywhere(batching):
    lengths = np.random.default_rng(0).integers(5, 50, 200)
    config = TrainConfig(epochs=2.5, token_budget=200, gradient_accumulation=2, batching=batching)
    plan = StepPlan(lengths, config)
    whole = list(plan.steps_from(0, 0, 0))
    in_first = math.ceil(len(plan_epoch(lengths, config, 0)) / 2)
    assert len(whole) == plan.total_steps == 2 * in_first + round(in_first / 2)
    first_two = np.concatenate([batch for step in whole if step.epoch < 2 for batch in step.batches])
    assert sorted(first_two) == sorted([*range(200), *range(200)])
    for done in (0, 1, 17, in_first, plan.total_steps - 1, plan.total_steps):
        last = whole[done - 1] if done else PlannedStep(0, -1, [])
        rest = list(plan.steps_from(done, last.epoch, last.number + 1))
        assert len(rest) == plan.total_steps - done
        for a, b in zip(rest, whole[done:], strict=True):
            assert (a.epoch, a.number) == (b.epoch, b.number)
            assert all(np.array_equal(x, y) for x, y in zip(a.batches, b.batches, strict=True))


def test_epochs_are_planned_when_they_are_reached(monkeypatch):
    """A budget in minutes asks for a thousand epochs; neither the start nor a resumption in the last one plans them all."""
    planned = []
    real = seqtune.tokens.batching.plan_epoch
    monkeypatch.setattr(seqtune.tokens.batching, "plan_epoch", lambda *args: planned.append(args[2]) or real(*args))
    lengths = np.random.default_rng(0).integers(5, 50, 500)
    plan = StepPlan(lengths, TrainConfig(epochs=1000, token_budget=200))
    assert planned == [0]
    assert plan.total_steps == 1000 * len(real(lengths, plan.config, 0))
    first = next(plan.steps_from(plan.total_steps - 2, 998, 4))
    assert planned == [0, 998]
    np.testing.assert_array_equal(first.batches[0], real(lengths, plan.config, 998)[4])


def test_enough_steps_are_counted_without_a_plan(monkeypatch):
    monkeypatch.setattr(seqtune.training.defaults, "plan_epoch", lambda *_: pytest.fail("planned"))
    assert resolve(TrainConfig(), 4_000_000, np.full(20_000, 60)).epochs == 3
    assert resolve(TrainConfig(batch_size=10), 4_000_000, np.full(4_000, 60)).epochs == 3


@pytest.mark.slow
def test_memory_does_not_grow(llama_folder, tmp_path):
    """Resident memory after 2,000 steps is what it was after 200."""
    resident: dict[int, float] = {}

    def look(model, count):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident[trainer.state.step] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        return {"exact_match": 0.0, "num_items": 1.0}

    config = TrainConfig(max_steps=2000, epochs=400, batch_size=8, precision="fp32", validate_every=200, checkpoint_minutes=1e9)
    trainer = Trainer(load_model(ModelConfig(name=str(llama_folder)), 0), encoded_rows(llama_folder), config, tmp_path, look)
    trainer.run(quiet=True)
    assert sorted(resident) == list(range(200, 2001, 200))
    assert resident[2000] - resident[200] < 30


@pytest.mark.slow
def test_all_optimisations_on_and_off_learn_the_same(llama_folder, tmp_path):
    """Held-out loss per target after the same rows: trimmed, bucketed, against whole, packed; within what another seed changes."""
    from seqtune.models.loss import TargetLoss
    from seqtune.tokens.batching import collate
    from seqtune.tokens.preparation import prepare

    table = write_csv(tmp_path / "pairs.csv", pairs(400))

    def held_out_loss(name: str, trim: bool, batching: str, seed: int) -> float:
        config = load_config(
            overrides={
                "data.path": str(table), "model.name": str(llama_folder), "train.batching": batching, "train.seed": seed,
                "train.batch_size": 16, "train.epochs": 8, "train.optimizer": "adamw", "train.learning_rate": 3e-3,
                "train.precision": "fp32", "data.split.test": 0.2,
            }
        )  # fmt: skip
        config.model.trim_vocabulary = trim
        prepared = prepare(config)
        model = load_model(config.model, 0)
        prepared.vocabulary.apply(model)
        (tmp_path / name).mkdir()
        Trainer(model, prepared.encoded, config.train, tmp_path / name).run(quiet=True)
        rows = prepared.encoder.encode([prepared.task.rendering.render(e) for e in prepared.examples["test"]])
        ours = [r for r in rows if isinstance(r, Encoded)]
        with torch.inference_mode():
            batch = collate(ours, 0)
            return float(TargetLoss(model.eval())(batch)) / len(batch.targets_N)

    on, again, off = (
        held_out_loss("on", True, "bucket", 0), held_out_loss("again", True, "bucket", 1), held_out_loss("off", False, "pack", 0)
    )  # fmt: skip
    assert on < 1.0, "the task must be learnt, or nothing is compared"
    assert abs(on - off) < max(0.05, 2 * abs(on - again))


@pytest.mark.slow
def test_compiled_training_equals_plain_training(llama_folder, tmp_path):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on CPUs")
    plain = train(llama_folder, tmp_path / "a", max_steps=3)
    compiled = train(llama_folder, tmp_path / "b", max_steps=3, compile=True)
    assert_same(plain, compiled, 1e-3)
