"""THE loop: full fine-tuning and pretraining, one device or many, fresh or resumed.

Optimisation depends on (data, config) alone: batches are planned for all processes together, losses are
divided by the loss tokens of the whole step, and randomness is drawn from (seed, step).
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from seqtune import progress, runs
from seqtune.config import TrainConfig
from seqtune.errors import ConfigError, RunError
from seqtune.models.loss import TargetLoss, can_pack, compile_backbone
from seqtune.records import Encoded
from seqtune.tokens.batching import StepPlan
from seqtune.training import checkpoints, defaults
from seqtune.training.checkpoints import TrainState
from seqtune.training.feed import Feed, Step, part_tokens
from seqtune.training.optim import WeightAverage, build_optimizers, learning_rate_factor, set_learning_rates
from seqtune.training.processes import autocast, make_accelerator, no_sync

LOG_EVERY = 10  # steps between lines of log.jsonl
NUM_VALIDATIONS = 10  # by default, over the whole training

# (model, number of items) -> metrics; the first metric that differs decides which weights are best
Validate = Callable[[PreTrainedModel, int | None], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended.

    Attributes:
        state: the final state.
        total_steps: steps that were planned.
        reason: "finished", "early_stopping", "max_minutes" or "interrupted".
    """

    state: TrainState
    total_steps: int
    reason: str


class Trainer:
    """One training: the model, its optimizers, the plan and the state.

    Args:
        model: a causal LM; trained in place.
        rows: encoded training rows.
        config: the `train` section.
        folder: the run folder; `checkpoints/` and `log.jsonl` go there.
        validate: generation-based validation, or `None`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Encoded],
        config: TrainConfig,
        folder: Path,
        validate: Validate | None = None,
    ):
        lengths = np.array([len(row.input_ids) for row in rows])
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.config = config = defaults.resolve(config, self.num_parameters, lengths)
        self.folder = folder
        self.validate = validate
        self.plan = StepPlan(lengths, config)
        if config.batching == "pack" and not can_pack(model):
            raise ConfigError(
                f"train.batching = 'pack' does not fit {type(model).__name__}, which takes no positions of ours; use 'bucket'"
            )
        self.accelerator = make_accelerator(config, folder)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if config.compile:
            compile_backbone(model)
        self.model = model.to(self.accelerator.device)
        self.loss = self.accelerator.prepare(TargetLoss(self.model))
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        optimizers = build_optimizers(self.model, config)
        self.average = next((o for o in optimizers if isinstance(o, WeightAverage)), None)
        self.optimizers = [self.accelerator.prepare(o) for o in optimizers]
        self.state = TrainState()
        device = self.accelerator.device
        on_gpu = device.type == "cuda"
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        part = None if on_gpu else part_tokens(self.num_parameters, trained)
        self.feed = Feed(rows, self.plan, self.accelerator.process_index, self.accelerator.num_processes, part, on_gpu)
        self._losses: list[torch.Tensor] = []
        self._validated = -1
        self.validate_every = config.validate_every or max(1, math.ceil(self.plan.total_steps / NUM_VALIDATIONS))
        self._interrupted = False

    def describe(self) -> str:
        """The resolved settings in one line, so that no default is silent."""
        c = self.config
        rates = f"{c.muon_learning_rate:g} and AdamW {c.learning_rate:g}" if c.optimizer == "muon" else f"{c.learning_rate:g}"
        size = f"{c.batch_size} rows" if c.batch_size else f"{c.token_budget:,} tokens"
        size += " packed" if c.batching == "pack" else ""
        limit = f", at most {c.max_minutes:g} minutes" if c.max_minutes else ""
        width = self.accelerator.num_processes
        limit += f", mean of the weights over {c.average:.0%} of the steps" if c.average else ""
        limit += f", {width} processes" if width > 1 else ""
        return (
            f"{self.num_parameters / 1e6:.1f} M parameters{self._trained()} on {self.accelerator.device} in {c.precision}; "
            f"{c.optimizer} {rates}; "
            f"{self.plan.total_steps:,} steps of {size}, {c.epochs:g} epochs{limit}"
        )

    def _trained(self) -> str:
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return (
            "" if count == self.num_parameters else f", {count:,} of them trained ({100 * count / self.num_parameters:.3g}%),"
        )

    @property
    def is_main(self) -> bool:
        """True in the process that writes files."""
        return self.accelerator.is_main_process

    def restore(self) -> bool:
        """Continue from the latest checkpoint, if there is one; drop log lines written after it."""
        checkpoint = runs.latest_checkpoint(self.folder / "checkpoints")
        if checkpoint is not None:
            self.state = checkpoints.load(checkpoint, self.model, self.optimizers)
        if self.is_main:
            log = self.folder / "log.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            kept = [line for line in lines if _step_of(line) <= self.state.step]
            runs.write_text(log, "".join(line + "\n" for line in kept))
        return checkpoint is not None

    def run(self, *, quiet: bool = False) -> Outcome:
        """Train to the end of the plan.

        Raises:
            RunError: the loss is not finite.
        """
        total = self.plan.total_steps
        reason, epoch = "finished", 0
        on_cpu = self.accelerator.device.type == "cpu"
        started = time.monotonic() - self.state.seconds
        saved = time.monotonic()
        self.loss.train()
        with progress.show("train", 1.0, enabled=self.is_main and not quiet) as tick, self._catch_interrupt():
            for step in self.feed.steps_from(self.state.step):
                share = self._progress(started)
                if share >= 1:
                    reason = "max_minutes"
                    break
                if self._has_stalled():
                    reason = "early_stopping"
                    break
                epoch = step.epoch
                self._step(step, share)
                self.state.seconds = time.monotonic() - started
                last = self.state.step == total
                if last or on_cpu or self.state.step % LOG_EVERY == 0:
                    self._settle()
                    tick(share, self._remark(share))
                if last or self.state.step % LOG_EVERY == 0:
                    self._log(epoch)
                if last or self.state.step % self.validate_every == 0:
                    self._validate(quiet)
                if self._interrupted:
                    reason = "interrupted"
                    break
                if self._checkpoint_due(saved) and not last:
                    self.checkpoint()
                    saved = time.monotonic()
        if reason == "max_minutes":
            self._log(epoch)
            self._validate(quiet)
        self.checkpoint()
        if self.average:
            self.average.exchange()
        self._end()
        return Outcome(self.state, total, reason)

    def _end(self) -> None:
        """Close trackers and the process group."""
        # the parallel wrapper goes first: if it were the last to hold the group, the group's destructor would wait for its
        # threads with the interpreter locked, and they for the interpreter
        self.loss = self.accelerator.unwrap_model(self.loss)
        self.optimizers, self.average = [], None  # their state is twice the model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The mean of the weights in their place, if there is one."""
        if self.average is None:
            yield
            return
        self.average.exchange()
        try:
            yield
        finally:
            self.average.exchange()

    def load_best(self) -> None:
        """Put the weights of the best validation back into the model."""
        path = checkpoints.best_path(self.folder / "checkpoints", self.state.best_step)
        if self.state.best is not None and path.exists():
            checkpoints.load_weights(self.model, path)

    def checkpoint(self) -> None:
        """Write a resumable checkpoint (main process only)."""
        self._settle()
        if self.is_main:
            checkpoints.save(self.folder / "checkpoints", self.model, self.optimizers, self.state)
        self.accelerator.wait_for_everyone()

    def _progress(self, started: float) -> float:
        """Share of the training that is done: by steps, or by time where that is further."""
        by_steps = (self.state.step + 0.5) / self.plan.total_steps
        if self.config.max_minutes is None:
            return by_steps
        by_time = (time.monotonic() - started) / (60 * self.config.max_minutes)
        return self._agree(max(by_steps, by_time))

    def _agree(self, value: Any) -> Any:
        """The main process's value, everywhere."""
        if self.accelerator.num_processes == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def _step(self, step: Step, share: float) -> None:
        device = self.accelerator.device
        set_learning_rates(self.optimizers, learning_rate_factor(share, self.config))
        width = self.accelerator.num_processes
        torch.manual_seed((self.config.seed * 1_000_003 + self.state.step) * width + self.accelerator.process_index)
        total = torch.zeros((), device=device)
        for index, (batch, weight) in enumerate(step.batches):
            last = index == len(step.batches) - 1
            with autocast(device, self.dtype), no_sync(self.accelerator, self.loss, not last):
                loss = weight * self.loss(batch.to(device))
                # data parallelism averages gradients over processes; the sum is wanted
                self.accelerator.backward(loss * (width / step.num_loss_tokens))
            total += loss.detach()
        if self.config.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.state.step += 1
        self.state.num_tokens += step.num_tokens
        self._losses.append(self.accelerator.reduce(total, "sum") / step.num_loss_tokens)  # type: ignore[operator]
        pending = self.state.unlogged
        for key, value in (("steps", 1), ("tokens", step.num_tokens)):
            pending[key] = pending.get(key, 0.0) + value

    def _settle(self) -> None:
        """Fetch the losses of the steps since the last time; on a GPU that waits for them, so it is not done at every step."""
        for loss in torch.stack(self._losses).tolist() if self._losses else []:
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss is {loss} at or shortly before step {self.state.step}; lower train.learning_rate "
                    "(and train.muon_learning_rate), or raise train.warmup"
                )
            self.state.unlogged["loss"] = self.state.unlogged.get("loss", 0.0) + loss
        self._losses = []

    def _log(self, epoch: int) -> None:
        self._settle()
        pending = self.state.unlogged
        if not pending:
            return
        line = {
            "step": self.state.step,
            "epoch": epoch,
            "loss": pending["loss"] / pending["steps"],
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "num_tokens": self.state.num_tokens,
            "seconds": round(self.state.seconds, 3),
        }
        self.state.unlogged = {}
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        if self.is_main:
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        values = {k: v for k, v in line.items() if k not in ("step", "validation")}
        values |= {f"validation/{k}": v for k, v in line.get("validation", {}).items()}
        self.accelerator.log(values, step=line["step"])

    def _remark(self, share: float) -> str:
        state = self.state
        loss = state.unlogged.get("loss", 0.0) / state.unlogged["steps"] if state.unlogged else float("nan")
        left = state.seconds * (1 - share) / max(share, 1e-9)
        shown = f"step {state.step} · " + (f"loss {loss:.3f} · " if state.unlogged else "")
        return f"{shown}{state.num_tokens / max(state.seconds, 1e-9):,.0f} tokens/s · {progress.remaining(left)} left"

    def _has_stalled(self) -> bool:
        """True if early stopping is on and the last validations brought no gain."""
        return self.config.early_stopping is not None and self.state.num_worse >= self.config.early_stopping

    def _validate(self, quiet: bool) -> None:
        """Score the weights, or their mean, unless that was done at this step, and keep them if they are the best."""
        if self.validate is None or self._validated == self.state.step:
            return
        self._validated = self.state.step
        with self._averaged():
            self._score(self.validate, quiet)

    def _score(self, validate: Validate, quiet: bool) -> None:
        state = self.state
        metrics = None
        if self.is_main:
            self.model.eval()
            metrics = validate(self.model, state.validation_size)
            self.model.train()
        metrics = self._agree(metrics)
        assert metrics is not None
        state.validation_size = int(metrics["num_items"])
        self._write({"step": state.step, "seconds": round(state.seconds, 3), "validation": metrics})
        shown = " ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        if self.is_main and not quiet:
            progress.console().print(f"[dim]step {state.step}: validation {shown}[/dim]")
        if state.best is None or _rank(metrics) > _rank(state.best):
            state.best, state.best_step, state.num_worse = metrics, state.step, 0
            if self.is_main:
                folder = self.folder / "checkpoints"
                folder.mkdir(exist_ok=True)
                checkpoints.save_weights(self.model, checkpoints.best_path(folder, state.step))
        else:
            state.num_worse += 1

    def _checkpoint_due(self, saved: float) -> bool:
        if self.config.checkpoint_every:
            return self.state.step % self.config.checkpoint_every == 0
        return bool(self._agree(time.monotonic() - saved > 60 * self.config.checkpoint_minutes))

    @contextmanager
    def _catch_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C ends the step and writes a checkpoint, the second stops at once."""

        def note(*_: object) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            previous = signal.signal(signal.SIGINT, note)
        except ValueError:  # not the main thread: nothing to catch
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def _rank(metrics: dict[str, float]) -> tuple[float, ...]:
    return tuple(value for name, value in metrics.items() if name != "num_items")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # the line that a kill cut in two
        return math.inf


def outcome_summary(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain values, for `metrics.json`'s neighbours and `--json`."""
    return {"reason": outcome.reason, "total_steps": outcome.total_steps} | asdict(outcome.state)
