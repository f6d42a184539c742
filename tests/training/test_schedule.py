"""When a training logs, validates, saves and stops: by steps, by time, by progress."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import seqtune.training.loop
from conftest import build_model
from seqtune.records import Encoded
from seqtune.sections import TrainConfig
from seqtune.training.checkpoints import TrainState
from seqtune.training.loop import Trainer
from seqtune.training.schedule import Schedule


class Clock:
    """A clock that only moves when told to, in place of the machine's."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(seqtune.training.loop.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def rows(count: int = 40) -> list[Encoded]:
    return [Encoded(torch.arange(5 + i % 7, 14 + i % 7).numpy().astype("int32"), 2) for i in range(count)]


def trainer(folder: Path, validate=None, **settings) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = TrainConfig(**{"batch_size": 4, "epochs": 2, "precision": "fp32", "checkpoint_minutes": 1e9} | settings)
    return Trainer(build_model("llama", 300), rows(), config, folder, validate)


def validations(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "validation" in line]


def score(model, count):
    return {"exact_match": 0.5, "num_items": 1.0}


@pytest.mark.parametrize("total", [3, 10, 24, 100, 997])
def test_by_steps_a_validation_follows_each_tenth(total):
    """Reference: tenths counted with whole numbers."""
    schedule, state, found = Schedule(TrainConfig(), total), TrainState(), []
    for state.step in range(1, total + 1):
        if schedule.validation_due(state):
            found.append(state.step)
            state.validated_step = state.step
    assert found == [n for n in range(1, total + 1) if 10 * n // total > 10 * (n - 1) // total]


def test_validation_steps_that_are_set_stay_steps():
    schedule, state = Schedule(TrainConfig(validate_every=7, max_minutes=1), 1000), TrainState(seconds=50.0)
    found = []
    for state.step in range(1, 30):
        if schedule.validation_due(state):
            found.append(state.step)
            state.validated_step = state.step
    assert found == [7, 14, 21, 28]


def test_checkpoints_by_steps_and_by_time():
    by_steps = Schedule(TrainConfig(checkpoint_every=5), 10)
    saved, found = 3, []  # resumed at step 3
    for step in range(4, 11):
        if by_steps.checkpoint_due(TrainState(step=step), saved, 0.0):
            found.append(step)
            saved = step
    assert found == [5]  # the last step is saved anyway
    by_time = Schedule(TrainConfig(checkpoint_minutes=2), 10)
    assert not by_time.checkpoint_due(TrainState(step=4, seconds=320.0), 3, 200.0)
    assert by_time.checkpoint_due(TrainState(step=4, seconds=321.0), 3, 200.0)


def test_a_training_with_a_time_limit_validates_at_tenths_of_the_time(tmp_path, clock):
    """A minute at a second a step, of many planned steps: a validation every six seconds, not every hundredth step."""

    def validate(model, count):
        clock.now += 0.5
        return {"exact_match": 0.5, "num_items": 1.0}

    run = trainer(tmp_path, validate, epochs=100, max_minutes=1)
    assert run.plan.total_steps == 1000
    step = run._step

    def slow(batches):
        clock.now += 1.0
        step(batches)

    run._step = slow
    outcome = run.run(quiet=True)
    assert outcome.reason == "max_minutes"
    # of 60 seconds, ten validations take five; each begins with the first step that ends in a new tenth
    assert validations(tmp_path) == [6, 12, 17, 23, 28, 34, 39, 45, 50, 56]
    assert outcome.state.step == 56
    assert outcome.state.best_step == 6


def test_slow_validations_leave_half_of_a_short_time_to_the_training(tmp_path, clock):
    def validate(model, count):
        clock.now += 20.0
        return {"exact_match": 0.5, "num_items": 1.0}

    run = trainer(tmp_path, validate, epochs=100, max_minutes=2)
    step = run._step

    def slow(batches):
        clock.now += 1.0
        step(batches)

    run._step = slow
    assert run.run(quiet=True).reason == "max_minutes"
    assert validations(tmp_path) == [12, 32, 52, 60]


@pytest.mark.parametrize("limit", [{}, {"max_minutes": 0.5, "epochs": 100}, {"early_stopping": 1}])
def test_resuming_a_finished_training_does_not_validate_again(tmp_path, clock, limit):
    calls = []

    def validate(model, count):
        calls.append(1)
        clock.now += 1.0
        return {"exact_match": 0.5, "num_items": 1.0}

    def once():
        run = trainer(tmp_path, validate, **limit)
        found = run.restore()
        step = run._step

        def slow(batches):
            clock.now += 1.0
            step(batches)

        run._step = slow
        return found, run.run(quiet=True)

    (_, first), number = once(), len(calls)
    assert number >= 2
    found, second = once()
    assert found
    assert (second.reason, second.state.step, len(calls)) == (first.reason, first.state.step, number)
    assert len(validations(tmp_path)) == number


def test_seconds_add_up_over_resumptions(tmp_path, clock):
    def part(steps: int):
        run = trainer(tmp_path, score)
        run.restore()
        step = run._step

        def slow(batches):
            clock.now += 2.0
            step(batches)
            run.interruption.noted = run.state.step == steps

        run._step = slow
        outcome = run.run(quiet=True)
        clock.now += 500.0  # between two parts
        return outcome

    assert (part(7).state.seconds, part(12).state.seconds, part(0).state.seconds) == (14.0, 24.0, 40.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in lines if "loss" in line] == [20.0, 40.0]
    assert [line["epoch"] for line in lines if "loss" in line] == [0, 1]


def test_one_reason_to_stop_or_none(tmp_path):
    run = trainer(tmp_path, max_minutes=1, early_stopping=2)
    assert run.should_stop() is None
    run.state.num_worse = 2
    assert run.should_stop() == "early_stopping"
    run.state.seconds = 61.0
    assert run.should_stop() == "max_minutes"
    run.state.step = run.plan.total_steps
    assert run.should_stop() == "finished"
