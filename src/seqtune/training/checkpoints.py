"""Checkpoints: safetensors and JSON, complete or absent, never half-written.

A checkpoint is written to a hidden folder, brought to the disk and renamed, so a kill or a power failure at any moment leaves
the previous one. Two are kept: where the newest is damaged, training goes on from the one before. Training draws all
randomness from (seed, step), so no generator state needs saving.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from seqtune import folders, progress, runs
from seqtune.errors import RunError
from seqtune.training.optim import WeightAverage
from seqtune.training.spread import shard_like, whole

MODEL, OPTIMIZER, AVERAGE, STATE = "model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"
BEST = "best.safetensors"


@dataclass(slots=True)
class TrainState:
    """Everything the loop knows beside weights and optimizer.

    Attributes:
        step: optimizer steps done.
        epoch: of the last step, 0-based.
        epoch_step: steps done in it.
        seconds: training time used so far, over all resumptions.
        num_tokens: real tokens read so far.
        best: the best validation's metrics, `None` before the first.
        best_step: step of that validation.
        num_worse: validations since then.
        validation_size: rows per validation (it shrinks once if a validation takes too long).
        validated_step: step of the last validation; 0 before the first.
        validated_seconds: training time at its end.
        validation_seconds: how long it took.
        unlogged: losses and number of the steps since the last log line.
        rewinds: how often the training has diverged and gone back; each halves the learning rate.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    best: dict[str, float] | None = None
    best_step: int = 0
    num_worse: int = 0
    validation_size: int | None = None
    validated_step: int = 0
    validated_seconds: float = 0.0
    validation_seconds: float = 0.0
    unlogged: dict[str, float] = field(default_factory=dict)
    rewinds: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended.

    Attributes:
        state: the final state.
        total_steps: steps that were planned.
        reason: "finished", "early_stopping", "max_minutes" or "interrupted".
        signal: number of the signal that interrupted it, else 0.
    """

    state: TrainState
    total_steps: int
    reason: str
    signal: int = 0


def outcome_summary(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain values, for the model card and `--json`."""
    return {"reason": outcome.reason, "total_steps": outcome.total_steps} | asdict(outcome.state)


def parts(
    model: nn.Module, optimizers: Sequence[Any], average: WeightAverage | None, *, keep: bool
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The files of a checkpoint, one after the other, whole and in the CPU's memory.

    Shards are put together, which takes every process, so each goes through all parts, and one keeps them. As nothing in a
    checkpoint is cut by processes, any number of them can go on from it.

    Args:
        model: with its shards or its copies.
        optimizers: likewise.
        average: likewise.
        keep: false in a process that only helps: its parts are empty.
    """
    yield MODEL, _collected(_trained(model), keep)
    yield OPTIMIZER, _collected(_optimizer_tensors(optimizers), keep)
    if average is not None:
        yield AVERAGE, _collected(average.tensors(), keep)


def _collected(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu().contiguous()
    return found


def save(folder: Path, files: Iterable[tuple[str, dict[str, torch.Tensor]]], state: TrainState) -> None:
    """Write `folder/step-N`, and then drop all but this checkpoint, the one before it and the best weights.

    Each checkpoint holds the best weights as well, as a second name of the same file where the file system can do that, so
    that the one before is enough to go on from.

    Args:
        folder: of the checkpoints.
        files: what `parts` gives.
        state: the rest.
    """
    final = folder / f"step-{state.step:08d}"
    # a folder cannot take another's place at once: in between, the old one is found under one zero more
    with folders.writing(final, aside=folder / f"step-0{state.step:08d}") as hidden:
        hidden.mkdir(parents=True)
        for name, tensors in files:
            save_file(tensors, hidden / name)
        if state.best is not None:
            _same_file(best_path(folder, state.best_step), hidden / BEST)
        (hidden / STATE).write_text(json.dumps(asdict(state)))
        runs.write_manifest(hidden, sorted(hidden.iterdir()))
    before = [path.name for path in runs.checkpoints(folder) if int(path.name.removeprefix("step-")) < state.step][-1:]
    keep = {final.name, *before, best_path(folder, state.best_step).name}
    for old in folder.iterdir():
        if old.name not in keep:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _same_file(path: Path, other: Path) -> None:
    """Give a file a second name, or copy it where that cannot be; nothing if it is not there."""
    if path.exists():
        try:
            os.link(path, other)
        except FileExistsError:  # another process of the training was quicker
            return
        except OSError:
            shutil.copyfile(path, other)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; says so if it is not the newest.

    Raises:
        RunError: there are checkpoints, and all are damaged; names a file of the newest.
    """
    torn: list[RunError] = []
    for checkpoint in reversed(runs.checkpoints(folder)):
        try:
            wrong = runs.differences(checkpoint)
            if wrong:
                name, why = next(iter(wrong.items()))
                raise runs.damaged(checkpoint / name, why)
        except RunError as error:
            torn.append(error)
            continue
        if torn:
            progress.console().print(f"{torn[0]}\ngoing on from the checkpoint before it, {checkpoint.name}", markup=False)
        return checkpoint
    if torn:
        raise torn[0]
    return None


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes, shared ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters that training changes of a model that is whole, all or nothing."""
    with folders.writing(path) as hidden:
        save_file(_collected(_trained(model), keep=True), hidden)


@torch.no_grad()
def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into the same architecture.

    Raises:
        RunError: the file is damaged, or holds other tensors.
    """
    tensors = _read(path)
    trained = _trained(model)
    wrong = sorted(n for n in trained | tensors if _shape(trained, n) != _shape(tensors, n))
    if wrong:
        raise RunError(
            f"{str(path)!r} does not fit this model (such as {', '.join(wrong[:3])}); "
            "start again with --overwrite or another --out"
        )
    for name, parameter in trained.items():
        parameter.copy_(shard_like(tensors[name], parameter))


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise runs.damaged(path, str(error)) from None


def best_path(folder: Path, step: int) -> Path:
    """Where the weights of the best validation lie."""
    return folder / f"best-{step:08d}.safetensors"


def load(
    checkpoint: Path, model: nn.Module, optimizers: Sequence[Any], average: WeightAverage | None, total_steps: int
) -> TrainState:
    """Restore weights, optimizer and state.

    Args:
        checkpoint: a folder that `save` wrote.
        model: receives the weights.
        optimizers: receive their state.
        average: receives its state.
        total_steps: what the training plans.

    Raises:
        RunError: the checkpoint is damaged, does not fit this model and optimizer, or lies beyond the plan.
    """
    try:
        stored = runs.read_json(checkpoint / STATE, step=int)
        state = TrainState(**{each.name: stored[each.name] for each in fields(TrainState)})
        if state.step > total_steps:
            raise RunError(
                f"the checkpoint {str(checkpoint)!r} is of step {state.step}, but this training has {total_steps} steps; "
                "train longer (train.epochs, train.max_steps), or start again with --overwrite or another --out"
            )
        load_weights(model, checkpoint / MODEL)
        _restore(optimizers, _read(checkpoint / OPTIMIZER))
        if average is not None:
            average.restore(_read(checkpoint / AVERAGE))
        best = best_path(checkpoint.parent, state.best_step)
        if (checkpoint / BEST).exists() and not best.exists():
            _same_file(checkpoint / BEST, best)
    except (KeyError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise RunError(
            f"the checkpoint {str(checkpoint)!r} does not fit this model and optimizer ({error}); "
            "start again with --overwrite or another --out"
        ) from None
    return state


def _optimizer_tensors(optimizers: Sequence[Any]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for i, optimizer in enumerate(optimizers):
        for j, entries in optimizer.state_dict()["state"].items():
            tensors |= _flattened(entries, f"{i}.{j}.")
    return tensors


def _flattened(entries: dict[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    """A parameter's state by dotted names; bitsandbytes nests it, and counts its steps in a plain number."""
    flat: dict[str, torch.Tensor] = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return flat


def _restore(optimizers: Sequence[Any], tensors: dict[str, torch.Tensor]) -> None:
    for i, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            which, parameter, *path, name = key.split(".")
            if int(which) == i:
                entries = state.setdefault(int(parameter), {})
                for part in path:
                    entries = entries.setdefault(part, {})
                plain = name == "step" and not value.is_floating_point()
                entries[name] = int(value) if plain else shard_like(value, parameters[int(parameter)])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
