"""A training that has diverged: how it is noticed, what is kept for inspection, and what can be done."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from seqtune import runs
from seqtune.errors import RunError
from seqtune.records import Encoded
from seqtune.tokens.batching import StepPlan
from seqtune.training.spread import whole

FILE = "diverged.json"  # in the run folder: the rows of the step
MOST_REWINDS = 5  # each halves the learning rate; what diverges at a 32nd of it has another reason


class DivergedError(RunError):
    """The loss or the weights are no numbers any more.

    Args:
        what: what was found.
        step: the step that did it, as far as that is known.
    """

    def __init__(self, what: str, step: int):
        super().__init__(
            f"{what}; the rows of that step are in {FILE} in the run folder. Three ways on: lower train.learning_rate (and "
            "train.muon_learning_rate); raise train.warmup, or set train.precision=fp32; or train.on_divergence=rewind, which "
            "goes back to the last checkpoint with half the rate by itself"
        )
        self.step = step


def check_losses(losses: Sequence[float], last: int) -> None:
    """Refuse losses that are no numbers.

    Args:
        losses: of the latest steps.
        last: number of the last of them.

    Raises:
        DivergedError: names the first.
    """
    for step, loss in enumerate(losses, start=last - len(losses) + 1):
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {step}", step)


@torch.no_grad()
def check_weights(model: nn.Module, step: int) -> None:
    """Refuse trained weights that are no numbers, before they are scored or take the place of good ones; all processes alike.

    Raises:
        DivergedError: names the first such parameter.
    """
    for name, parameter in model.named_parameters():
        # a sum, as `all` of a shard asks no other process
        if parameter.requires_grad and int(whole(torch.isfinite(parameter).logical_not().sum())):
            raise DivergedError(f"the weights {name!r} are not finite after step {step}", step)


def keep_rows(folder: Path, plan: StepPlan, rows: Sequence[Encoded], error: DivergedError) -> None:
    """Write down which rows the step read: their places among the training rows, and their tokens."""
    planned = next(itertools.islice(plan.steps_from(0, 0, 0), max(0, error.step - 1), None))
    indices = [int(i) for batch in planned.batches for i in batch]
    shown = [{"row": i, "input_ids": rows[i].input_ids.tolist(), "loss_start": int(rows[i].loss_start)} for i in indices]
    runs.write_text(folder / FILE, json.dumps({"step": error.step, "error": str(error), "rows": shown}) + "\n")
