"""The bytes that a process holds at most in a step of a model that is spread, as torch's profiler hears them.

python measure_spread.py PARALLEL ROWS LENGTH FILE SETTINGS      # in each of the processes; the main one writes FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from seqtune.records import Batch
from seqtune.training.processes import process_state
from seqtune.training.spread import spread


def most(heard: profile) -> int:
    """The most bytes that were allocated at once."""
    events = [event for event in heard.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = found = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        found = max(found, now)
    return found


def size(tensor: torch.Tensor) -> int:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.numel() * own.element_size()


def measured(parallel: str, rows: int, length: int, share: float, family: str, settings: dict[str, int]) -> int:
    """Weights, AdamW's state, and the most that the second step holds besides; not the main process's whole model."""
    accelerator = Accelerator(cpu=process_state()._cpu)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).train()
    parts = spread(model, accelerator, parallel)
    optimizer = torch.optim.AdamW(parts.trained.parameters(), fused=True)
    positions = torch.arange(round(share * rows * length))
    batch = Batch(torch.ones(rows, length, dtype=torch.int64), positions, torch.ones_like(positions), rows * length)
    for _ in range(2):
        optimizer.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as heard:
            parts.loss(batch).backward()
        optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    return most(heard) + sum(map(size, [*parts.trained.parameters(), *states]))


if __name__ == "__main__":
    kind, num_rows, num_tokens, file, family, settings = sys.argv[1:]
    found = measured(kind, int(num_rows), int(num_tokens), 0.5, family, json.loads(settings))
    if process_state().is_main_process:
        Path(file).write_text(json.dumps(found))
