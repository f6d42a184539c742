"""Checkpoints: safetensors and JSON, complete or absent, never half-written.

A checkpoint is written to a hidden folder and renamed, so a kill at any moment leaves the previous
one. Training draws all randomness from (seed, step), so no generator state needs saving.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from seqtune.errors import RunError


@dataclass(slots=True)
class TrainState:
    """Everything the loop knows beside weights and optimizer.

    Attributes:
        step: optimizer steps done.
        seconds: training time used so far.
        num_tokens: real tokens read so far.
        best: the best validation's metrics, `None` before the first.
        best_step: step of that validation.
        num_worse: validations since then.
        validation_size: rows per validation (it shrinks once if a validation takes too long).
        unlogged: losses and tokens since the last log line.
    """

    step: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    best: dict[str, float] | None = None
    best_step: int = 0
    num_worse: int = 0
    validation_size: int | None = None
    unlogged: dict[str, float] = field(default_factory=dict)


def save(folder: Path, model: nn.Module, optimizers: Sequence[Any], state: TrainState) -> None:
    """Write `folder/step-N` and then drop older checkpoints and best weights that are no longer the best."""
    hidden = folder / ".writing"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    save_weights(model, hidden / "model.safetensors")
    save_file(_optimizer_tensors(optimizers), hidden / "optimizer.safetensors")
    (hidden / "state.json").write_text(json.dumps(asdict(state)))
    final = folder / f"step-{state.step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    hidden.rename(final)
    keep = {final.name, f"best-{state.best_step:08d}.safetensors"}
    for old in folder.iterdir():
        if old.name not in keep:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters that training changes, shared ones once."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    hidden = path.with_name("." + path.name)
    save_file(tensors, hidden)
    hidden.replace(path)


@torch.no_grad()
def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into the same architecture."""
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(tensors[name])


def best_path(folder: Path, step: int) -> Path:
    """Where the weights of the best validation lie."""
    return folder / f"best-{step:08d}.safetensors"


def load(checkpoint: Path, model: nn.Module, optimizers: Sequence[Any]) -> TrainState:
    """Restore weights, optimizer and state.

    Raises:
        RunError: the checkpoint does not fit this model and optimizer.
    """
    try:
        load_weights(model, checkpoint / "model.safetensors")
        _restore(optimizers, load_file(checkpoint / "optimizer.safetensors"))
        return TrainState(**json.loads((checkpoint / "state.json").read_text()))
    except (KeyError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise RunError(
            f"the checkpoint {str(checkpoint)!r} does not fit this model and optimizer ({error}); "
            "start again with --overwrite or another --out"
        ) from None


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
            tensor = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
            flat[prefix + name] = tensor.cpu().contiguous()
    return flat


def _restore(optimizers: Sequence[Any], tensors: dict[str, torch.Tensor]) -> None:
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            which, parameter, *path, name = key.split(".")
            if int(which) == i:
                entries = state.setdefault(int(parameter), {})
                for part in path:
                    entries = entries.setdefault(part, {})
                plain = name == "step" and not value.is_floating_point()
                entries[name] = int(value) if plain else value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
