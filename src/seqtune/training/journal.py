"""What a training tells while it runs: `log.jsonl`, the trackers, and the line that people watch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from seqtune import progress, runs
from seqtune.training import divergence
from seqtune.training.checkpoints import TrainState
from seqtune.training.schedule import Schedule

TIMED = 2  # steps whose speed tells how long the others take


class Journal:
    """Takes losses as they come, and reads them only when somebody asks: on a GPU that waits for the steps that made them.

    Args:
        accelerator: of this process; the main one writes.
        folder: of the run.
        schedule: tells how far the training is.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, schedule: Schedule):
        self._accelerator, self._schedule = accelerator, schedule
        self._path = folder / "log.jsonl"
        self._losses: list[torch.Tensor] = []
        self._exact: float | None = None  # of the last validation
        self._timed_from: tuple[int, float] | None = None  # step, and seconds; `None` before the first one
        self._has_told = False  # how long it will take

    def note(self, loss: torch.Tensor, state: TrainState) -> None:
        """The loss of the step that has been done."""
        self._losses.append(loss)
        state.unlogged["steps"] = state.unlogged.get("steps", 0.0) + 1

    def settle(self, state: TrainState) -> None:
        """Fetch the losses of the steps since the last time.

        Raises:
            DivergedError: one of them is no number.
        """
        losses: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        divergence.check_losses(losses, state.step)
        for loss in losses:
            state.unlogged["loss"] = state.unlogged.get("loss", 0.0) + loss
        self._losses = []

    def log(self, state: TrainState, learning_rate: float) -> None:
        """Write the line of the steps since the last one, if there are any."""
        self.settle(state)
        pending = state.unlogged
        if not pending:
            return
        line = {
            "step": state.step,
            "epoch": state.epoch,
            "loss": pending["loss"] / pending["steps"],
            "learning_rate": learning_rate,
            "num_tokens": state.num_tokens,
            "seconds": round(state.seconds, 3),
        }
        state.unlogged = {}
        self.write(line)

    def log_validation(self, state: TrainState, metrics: dict[str, float], quiet: bool) -> None:
        """Write the scores of a validation, and show them."""
        self.write({"step": state.step, "seconds": round(state.seconds, 3), "validation": metrics})
        self._exact = metrics.get("exact_match")
        if self._tells(quiet):
            shown = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in metrics.items() if k != "num_items" and "/" not in k)
            progress.console().print(f"[dim]step {state.step}: {shown} on {int(metrics['num_items']):,} validation rows[/dim]")

    def _tells(self, quiet: bool) -> bool:
        return self._accelerator.is_main_process and not quiet

    def write(self, line: dict[str, Any]) -> None:
        """One line of the log, and for the trackers."""
        if self._accelerator.is_main_process:
            with self._path.open("a") as log:
                log.write(json.dumps(line) + "\n")
        values = {k: v for k, v in line.items() if k not in ("step", "validation")}
        values |= {f"validation/{k}": v for k, v in line.get("validation", {}).items()}
        self._accelerator.log(values, step=line["step"])

    def go_back(self, step: int) -> None:
        """Forget what came after a step."""
        self._losses = []
        if self._accelerator.is_main_process:
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            kept = [line for line in lines if _step_of(line) <= step]
            runs.write_text(self._path, "".join(line + "\n" for line in kept))

    def show(self, state: TrainState, tick: progress.Tick, quiet: bool) -> None:
        """Move the line that people watch; before it, once, how long the training will take."""
        self.settle(state)
        if not self._has_told and self._schedule.max_seconds == math.inf:
            self._tell_time(state, quiet)
        done = self._schedule.progress(state.step, state.seconds)
        loss = state.unlogged["loss"] / state.unlogged["steps"]
        speed = f"{state.num_tokens / max(state.seconds, 1e-9):,.0f} tokens/s"
        left = progress.remaining(state.seconds * (1 - done) / done)
        right = "" if self._exact is None else f" · {self._exact:.1%} right"
        tick(min(1.0, done), f"step {state.step} · loss {loss:.3f}{right} · {speed} · {left} left")

    def _tell_time(self, state: TrainState, quiet: bool) -> None:
        """Say it once it is measured, by steps with no validation between them; a process that resumes measures its own."""
        if self._timed_from is None or state.validated_step >= self._timed_from[0]:
            self._timed_from = state.step, state.seconds
            return
        step, seconds = self._timed_from
        timed, others = state.step - step, self._schedule.total_steps - state.step
        if timed < TIMED or not others:
            return
        self._has_told = True
        if self._tells(quiet):
            left = progress.remaining((state.seconds - seconds) / timed * others)
            said = f"{left} for the other {others:,} steps, by the speed of the last {timed}; validations come on top"
            progress.console().print(f"[dim]{said}[/dim]")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # the line that a kill cut in two
        return math.inf
