"""Trainings that `test_spread.py` compares: each is run by one process and by several.

python spread_cases.py FOLDER NAME...       # in each of the processes
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

import seqtune.training.loop
from conftest import build_model
from seqtune.models.adapters import Adapter
from seqtune.records import Encoded
from seqtune.sections import AdapterConfig, TrainConfig
from seqtune.training.loop import Trainer

VOCABULARY = 300
STOP, SAVED = 7, 5  # a broken training ends after step 7, and has a checkpoint of step 5
PROMPT = 3  # virtual tokens

# name -> family, adapter method, settings of `train`
CASES = {
    "adamw": ("llama", None, {"clip": 0.5, "weight_decay": 0.1}),
    "muon": ("gpt2", None, {"optimizer": "muon", "average": 0.2, "schedule": "constant"}),
    "untied": ("gpt_neox", None, {"optimizer": "muon", "gradient_checkpointing": True}),
    "packed": ("llama", None, {"batching": "pack", "batch_size": None, "token_budget": 80}),
    "accumulated": ("opt", None, {"batch_size": 4, "gradient_accumulation": 3}),
    "fewer rows than processes": ("llama", None, {"batch_size": 1, "epochs": 0.4}),
    "lora": ("llama", "lora", {}),
    "prompt": ("llama", "prompt_tuning", {}),
    "broken adamw": ("llama", None, {"checkpoint_every": SAVED}),
    "broken muon": ("llama", None, {"optimizer": "muon", "average": 0.2, "schedule": "constant", "checkpoint_every": SAVED}),
    "broken lora": ("llama", "lora", {"checkpoint_every": SAVED}),
}


class Stopped(Exception):
    """Stands for a kill."""


def rows(virtual: int) -> list[Encoded]:
    first = list(range(VOCABULARY, VOCABULARY + virtual))
    texts = [[*first, *range(5 + i % 7, 14 + i % 7 + i % 5)] for i in range(30)]
    return [Encoded(torch.tensor(text, dtype=torch.int32).numpy(), virtual + 2) for text in texts]


def train(name: str, folder: Path, *, stop: bool = False) -> Trainer:
    """Run a case in `folder`, from its checkpoint if it has one."""
    family, method, settings = CASES[name]
    model = build_model(family, VOCABULARY)
    if method:
        torch.manual_seed(0)
        Adapter.attach(model, AdapterConfig(method=method, num_virtual_tokens=PROMPT))  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "batch_size": 10,
        "epochs": 3,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "parallel": "fsdp",
        "precision": "fp32",
    }
    trainer = Trainer(
        model, rows(PROMPT if method == "prompt_tuning" else 0), TrainConfig(**common | settings), folder,
        lambda model, _: {"exact_match": float(sum(p.detach().abs().sum() for p in model.parameters())), "num_items": 1.0},
    )  # fmt: skip
    trainer.restore()
    step = trainer._step

    def stopping(given):
        step(given)
        held = [*trainer.spread.trained.parameters(), *_states(trainer)]
        sizes = [t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in held]
        (folder / f"held-{trainer.accelerator.process_index}.json").write_text(json.dumps(sum(sizes)))
        if stop and trainer.state.step == STOP:
            raise Stopped

    trainer._step = stopping
    trainer.run(quiet=True)
    return trainer


def _states(trainer: Trainer) -> list[torch.Tensor]:
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    return [value for state in states for value in state.values()] + (trainer.average.means if trainer.average else [])


def finish(name: str, folder: Path) -> None:
    """Run a case to its end, and write down its weights."""
    trainer = train(name, folder)
    if trainer.is_main:
        norms = {name: float(p.detach().double().norm()) for name, p in trainer.model.named_parameters()}
        (folder / "norms.json").write_text(json.dumps(norms))


def run(name: str, folder: Path) -> None:
    """Run a case, one that is broken only until it breaks."""
    seqtune.training.loop.LOG_EVERY = 1
    if not name.startswith("broken") or (folder / "checkpoints").exists():
        finish(name, folder)
        return
    try:
        train(name, folder, stop=True)
    except Stopped:
        return


if __name__ == "__main__":
    for case in sys.argv[2:]:
        run(case, Path(sys.argv[1]) / case)
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
