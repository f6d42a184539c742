"""When to validate and to save: by steps, by time, or by progress, which is the further of the two."""

from __future__ import annotations

import math

from seqtune.sections import TrainConfig
from seqtune.training.checkpoints import TrainState

NUM_VALIDATIONS = 10  # by default, over the whole training


class Schedule:
    """What is due at a state of the training.

    Args:
        config: resolved: `max_minutes`, `validate_every`, `checkpoint_every`, `checkpoint_minutes`.
        total_steps: what is planned.

    Example:
        >>> schedule = Schedule(TrainConfig(max_minutes=1), total_steps=1000)
        >>> schedule.progress(step=100, seconds=30.0)  # a tenth of the steps, half of the time
        0.5
    """

    def __init__(self, config: TrainConfig, total_steps: int):
        self.config, self.total_steps = config, total_steps
        self.max_seconds = 60 * config.max_minutes if config.max_minutes else math.inf

    def progress(self, step: float, seconds: float) -> float:
        """Share of the training that is done, 1 at its end."""
        return max(step / self.total_steps, seconds / self.max_seconds)

    def validation_due(self, state: TrainState) -> bool:
        """True once after every `validate_every` steps, or after every tenth of the progress."""
        if self.config.validate_every:
            return _passed(self.config.validate_every, state.validated_step, state.step)
        before = self.progress(state.validated_step, state.validated_seconds)
        due = _passed(1 / NUM_VALIDATIONS, before, self.progress(state.step, state.seconds))
        # in a short time, slow validations would leave nothing for the training: it gets at least as much as they
        rested = self.max_seconds == math.inf or state.seconds - state.validated_seconds >= state.validation_seconds
        return due and rested

    def checkpoint_due(self, state: TrainState, saved_step: int, saved_seconds: float) -> bool:
        """True once after every `checkpoint_every` steps, or after `checkpoint_minutes` since the last checkpoint.

        Not after the last step, which is saved anyway.
        """
        if state.step == self.total_steps:
            return False
        if self.config.checkpoint_every:
            return _passed(self.config.checkpoint_every, saved_step, state.step)
        return state.seconds - saved_seconds > 60 * self.config.checkpoint_minutes


def _passed(interval: float, before: float, now: float) -> bool:
    """True if a multiple of the interval lies between, or now; a rounding error below it counts as there."""
    return math.floor(now / interval + 1e-9) > math.floor(before / interval + 1e-9)
