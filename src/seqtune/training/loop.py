"""THE loop: full fine-tuning and pretraining, one device or many, fresh or resumed.

Optimisation depends on (data, config) alone: batches are planned for all processes together, losses are
divided by the loss tokens of the whole step, and randomness is drawn from (seed, step).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from seqtune import progress
from seqtune.errors import RunError
from seqtune.models.loss import check_packing, compile_backbone
from seqtune.records import Encoded
from seqtune.sections import TrainConfig
from seqtune.tokens.batching import StepPlan
from seqtune.tokens.token_table import TokenTable
from seqtune.training import checkpoints, defaults, divergence
from seqtune.training.checkpoints import Outcome, TrainState
from seqtune.training.divergence import DivergedError
from seqtune.training.feed import Feed, Step, part_tokens
from seqtune.training.interruption import Interrupted, Interruption
from seqtune.training.journal import Journal
from seqtune.training.log import rank
from seqtune.training.optim import WeightAverage, build_optimizers, learning_rate_factor, set_learning_rates
from seqtune.training.processes import Agreement, autocast, make_accelerator
from seqtune.training.schedule import Schedule
from seqtune.training.spread import Shards, spread

LOG_EVERY = 10  # steps between lines of log.jsonl

# (model, number of items) -> metrics; the first metric that differs decides which weights are best
Validate = Callable[[PreTrainedModel, int | None], dict[str, float]]


class Trainer:
    """One training: the model, its optimizers, the plan and the state.

    Args:
        model: a causal LM; trained in place. Where several processes share it out, the main one has it whole after `run`.
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
        rows = rows if isinstance(rows, TokenTable) else TokenTable.of(rows)
        lengths = rows.lengths
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.config = config = defaults.resolve(config, self.num_parameters, lengths)
        self.folder = folder
        self.validate = validate
        self.plan = StepPlan(lengths, config)
        self.schedule = Schedule(config, self.plan.total_steps)
        self.accelerator = make_accelerator(config, folder)
        self.agreement = Agreement(self.accelerator.num_processes)
        check_packing(model, config.batching)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if config.compile:
            compile_backbone(model)
        self.spread = spread(model, self.accelerator, config.parallel)
        self.model = self.spread.model
        self.loss: Any = self.spread.loss
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.optimizers = [self.accelerator.prepare(o) for o in build_optimizers(self.spread.trained, config)]
        trained = [p for p in self.spread.trained.parameters() if p.requires_grad]
        self.num_trained = sum(p.numel() for p in trained)
        self.average = WeightAverage(trained, config.average) if config.average else None
        self.state = TrainState()
        self.journal = Journal(self.accelerator, folder, self.schedule)
        self.feed = self._feed(rows)
        self.interruption = Interruption()
        self._gradients_checked, self._interrupted = False, 0

    def _feed(self, rows: TokenTable) -> Feed:
        on_gpu = self.accelerator.device.type == "cuda"
        # shards are put together for every part, by all processes at once, so each must have as many parts as the others
        cut = not on_gpu and not isinstance(self.spread, Shards)
        part = part_tokens(self.num_parameters, self.num_trained) if cut else None
        return Feed(rows, self.plan, self.accelerator.process_index, self.accelerator.num_processes, part, on_gpu)

    def describe(self) -> str:
        """The resolved settings in one line, so that no default is silent."""
        c = self.config
        rates = f"{c.muon_learning_rate:g} and AdamW {c.learning_rate:g}" if c.optimizer == "muon" else f"{c.learning_rate:g}"
        size = f"{c.batch_size} rows" if c.batch_size else f"{c.token_budget:,} tokens"
        size += " packed" if c.batching == "pack" else ""
        steps = f"{self.plan.total_steps:,} steps of {size}" + ("" if c.max_steps else f", {c.epochs:g} epochs")
        length = f"stops after {c.max_minutes:g} minutes, or after {steps}, if they take less" if c.max_minutes else steps
        width = self.accelerator.num_processes
        limit = f", mean of the weights over {c.average:.0%} of the steps" if c.average else ""
        sharded = ", which share the weights out" if isinstance(self.spread, Shards) else ""
        limit += f", {width} processes{sharded}" if width > 1 else ""
        return (
            f"{self.num_parameters / 1e6:.1f} M parameters{self._trained()} on {self.accelerator.device} in {c.precision}; "
            f"{c.optimizer} {rates}; {length}{limit}"
        )

    def _trained(self) -> str:
        share = self.num_trained / self.num_parameters
        return f", {self.num_trained:,} of them trained ({100 * share:.3g}%)," if share < 1 else ""

    @property
    def is_main(self) -> bool:
        """True in the process that writes files."""
        return self.accelerator.is_main_process

    def restore(self) -> bool:
        """Continue from the latest checkpoint, if there is one; drop log lines written after it.

        Raises:
            RunError: it is damaged, does not fit, or is not there for every process.
        """
        folder = self.folder / "checkpoints"
        found = checkpoints.newest_whole(folder) if self.is_main else None
        name: str = self.agreement.from_main(found.name if found else "")
        checkpoint = folder / name
        if any(self.agreement.largest(name != "" and not checkpoint.is_dir())):
            raise RunError(
                f"the checkpoint {str(checkpoint)!r} is not there for every process; put the run folder on a disk that all "
                "machines share, or resume on the machine of the first process alone"
            )
        if name:
            model = self.spread.trained
            self.state = checkpoints.load(checkpoint, model, self.optimizers, self.average, self.plan.total_steps)
        self.journal.go_back(self.state.step)
        return name != ""

    def run(self, *, quiet: bool = False) -> Outcome:
        """Train until there is a reason to stop, then keep what was reached.

        Raises:
            DivergedError: the loss or the weights are not finite.
            RunError: a parameter gets no gradient.
        """
        self._started = time.monotonic() - self.state.seconds
        self._saved_step, self._saved_seconds = self.state.step, self.state.seconds
        self.loss.train()
        with progress.show("train", 1.0, enabled=self.is_main and not quiet) as tick, self.interruption:
            while (reason := self._until_the_end(tick, quiet)) is None:
                pass
        if self.average:
            self.average.exchange()
        self._end()
        return Outcome(self.state, self.plan.total_steps, "interrupted" if self._interrupted else reason, self._interrupted)

    def _until_the_end(self, tick: progress.Tick, quiet: bool) -> str | None:
        """Train until there is a reason to stop; `None` if the training diverged and went back."""
        try:
            if self.config.on_divergence == "rewind" and self.state.step == 0:
                self.checkpoint()
            steps = self.feed.steps_from(self.state.step, self.state.epoch, self.state.epoch_step)
            self._agree()
            self._do_what_is_due(quiet)  # a validation, if the training was interrupted when it was due
            while (reason := self.should_stop()) is None:
                self._step(next(steps))
                self._agree()
                self._show(tick, quiet)
                self._do_what_is_due(quiet)
            if reason != "interrupted":
                self._log()
                self._validate(quiet)
            self.checkpoint()
            self._agree()
        except DivergedError as error:
            self._rewind(error)
            return None
        return reason

    def _rewind(self, error: DivergedError) -> None:
        """Keep the rows that did it, and go back to the last checkpoint with half the rate if that is what is wanted."""
        if self.is_main:
            divergence.keep_rows(self.folder, self.plan, self.feed.rows, error)
        rewinds = self.state.rewinds + 1
        if self.config.on_divergence != "rewind" or rewinds > divergence.MOST_REWINDS:
            raise error
        self.restore()
        self.state.rewinds = rewinds
        self.checkpoint()
        self._started = time.monotonic() - self.state.seconds
        self.journal.write({"step": self.state.step, "seconds": round(self.state.seconds, 3), "rewinds": rewinds})
        if self.is_main:
            said = (
                f"{str(error).partition(';')[0]}: back to step {self.state.step} with the learning rate times {0.5**rewinds:g}"
            )
            progress.console().print(said, style="yellow", markup=False)

    def _agree(self) -> None:
        """Take note of the time and of interruptions, alike in all processes: one small exchange a step."""
        seconds, interrupted = self.agreement.largest(time.monotonic() - self._started, self.interruption.noted)
        self.state.seconds, self._interrupted = seconds, int(interrupted)
        if self._interrupted:
            self.interruption.note(self._interrupted)

    def should_stop(self) -> str | None:
        """Why the training ends here, the same in all processes; `None` if it goes on."""
        state, patience = self.state, self.config.early_stopping
        if self._interrupted:
            return "interrupted"
        if state.step >= self.plan.total_steps:
            return "finished"
        if self.schedule.progress(state.step, state.seconds) >= 1:
            return "max_minutes"
        return "early_stopping" if patience is not None and state.num_worse >= patience else None

    def _do_what_is_due(self, quiet: bool) -> None:
        """Log, validate and save where the schedule says so; an interrupted training saves at once and does the rest later."""
        if self.state.step % LOG_EVERY == 0:
            self._log()
        if not self._interrupted and self.schedule.validation_due(self.state):
            self._validate(quiet)
        if not self._interrupted and self.schedule.checkpoint_due(self.state, self._saved_step, self._saved_seconds):
            self.checkpoint()

    def _end(self) -> None:
        """Leave the weights in the model, and close trackers and the process group."""
        self.loss = None
        self.spread.finish()
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
        """Put the weights of the best validation back into the main process's model."""
        path = checkpoints.best_path(self.folder / "checkpoints", self.state.best_step)
        if self.is_main and self.state.best is not None and path.exists():
            checkpoints.load_weights(self.model, path)

    def checkpoint(self) -> None:
        """Write a resumable checkpoint, which any number of processes can go on from."""
        self.journal.settle(self.state)
        divergence.check_weights(self.spread.trained, self.state.step)
        if self.is_main:
            checkpoints.save(self.folder / "checkpoints", self._parts(), self.state)
        else:
            for _ in self._parts():  # the main process puts shards together with everybody's help
                pass
        self.agreement.wait()
        self._saved_step, self._saved_seconds = self.state.step, self.state.seconds

    def _parts(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """The checkpoint's files; the next is not begun before the main process has written one, however long that takes."""
        for part in checkpoints.parts(self.spread.trained, self.optimizers, self.average, keep=self.is_main):
            yield part
            self.agreement.wait()

    def _step(self, step: Step) -> None:
        device = self.accelerator.device
        factor = learning_rate_factor(self.schedule.progress(self.state.step + 0.5, self.state.seconds), self.config)
        set_learning_rates(self.optimizers, factor * 0.5**self.state.rewinds)
        width = self.accelerator.num_processes
        torch.manual_seed((self.config.seed * 1_000_003 + self.state.step) * width + self.accelerator.process_index)
        total = torch.zeros((), device=device)
        for index, (batch, weight) in enumerate(step.batches):
            last = index == len(step.batches) - 1
            with autocast(device, self.dtype), nullcontext() if last else self.spread.adding_up():
                loss = weight * self.loss(batch.to(device))
                # data parallelism averages gradients over processes; the sum is wanted
                self.accelerator.backward(loss * (width / step.num_loss_tokens))
            total += loss.detach()
        if not self._gradients_checked:
            self._check_gradients()
        if self.config.clip is not None:
            self.accelerator.clip_grad_norm_(self.spread.trained.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.average:
            self.average.update(factor)
        self.state.step += 1
        self.state.epoch, self.state.epoch_step = step.epoch, step.number + 1
        self.state.num_tokens += step.num_tokens
        self.journal.note(self.accelerator.reduce(total, "sum") / step.num_loss_tokens, self.state)  # type: ignore[operator]

    def _check_gradients(self) -> None:
        """Refuse to train on if a parameter that is to be trained takes no part in the loss; tokens unseen have zeros."""
        missing = [name for name, p in self.spread.trained.named_parameters() if p.requires_grad and p.grad is None]
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise RunError(
                f"{len(missing)} of the parameters to train get no gradient and would stay as they are: {names}; "
                "set train.gradient_checkpointing to false if it is on, or name the others with adapter.method 'layers'"
            )
        self._gradients_checked = True

    def _log(self) -> None:
        self.journal.log(self.state, self.optimizers[0].param_groups[0]["lr"])

    def _show(self, tick: progress.Tick, quiet: bool) -> None:
        """Progress for people; on a GPU not at every step, as it waits for the loss."""
        state = self.state
        on_cpu = self.accelerator.device.type == "cpu"
        if not on_cpu and state.step % LOG_EVERY and state.step < self.plan.total_steps:
            return
        self.journal.show(state, tick, quiet)

    def _validate(self, quiet: bool) -> None:
        """Score the weights, or their mean, unless that was done at this step, and keep them if they are the best."""
        state = self.state
        if self.validate is None or state.validated_step == state.step:
            return
        self.journal.settle(state)
        divergence.check_weights(self.spread.trained, state.step)
        before = state.seconds
        with self._averaged(), self.spread.whole():
            done = self._score(self.validate, quiet)
        self._agree()
        if done:
            state.validated_step, state.validated_seconds = state.step, state.seconds
            state.validation_seconds = state.seconds - before

    def _score(self, validate: Validate, quiet: bool) -> bool:
        """True unless a signal came in between."""
        state = self.state
        metrics = None
        if self.is_main:
            self.model.eval()
            with suppress(Interrupted), self.interruption.leaving():
                metrics = validate(self.model, state.validation_size)
            self.model.train()
        metrics = self.agreement.from_main(metrics)
        if metrics is None:
            return False
        state.validation_size = int(metrics["num_items"])
        self.journal.log_validation(state, metrics, quiet)
        if state.best is None or rank(metrics) > rank(state.best):
            state.best, state.best_step, state.num_worse = metrics, state.step, 0
            if self.is_main:
                folder = self.folder / "checkpoints"
                folder.mkdir(exist_ok=True)
                checkpoints.save_weights(self.model, checkpoints.best_path(folder, state.step))
        else:
            state.num_worse += 1
        return True
