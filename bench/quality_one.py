"""Training time until an exact match on 200 validation rows: `quality_one.py WORK --recipe seqtune --task dates --minutes 15`.

The time of validations is left out, for every contender alike. Recipes: `seqtune` (its defaults), `paper` (arXiv 2402.05616: learning
rate 2e-5, batch 4, 3 epochs, loss on the whole sequence, AdamW), and single changes to the defaults for the table in LOG.md.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import tasks
from seqtune.config import load_config
from seqtune.procedures import fit
from seqtune.procedures.validation import Validator
from seqtune.tokens.preparation import prepare
from seqtune.training.loop import Trainer
from seqtune.yaml_files import parse_override

RECIPES: dict[str, dict[str, Any]] = {
    "seqtune": {},
    "paper": {
        "train.learning_rate": 2e-5, "train.batch_size": 4, "train.epochs": 3, "train.loss_on": "all",
        "train.optimizer": "adamw", "train.schedule": "linear", "train.warmup": 0.0, "train.precision": "fp32",
        "model.trim_vocabulary": False,
    },
}  # fmt: skip


class Reached(Exception):
    """The exact match is reached."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", choices=RECIPES, default="seqtune")
    parser.add_argument("--task", choices=tasks.TASKS, default="dates")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--every", type=float, default=8.0, help="seconds of training between validations")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    train, validation, target = tasks.prepare(options.work, options.task)
    folder = Path(tempfile.mkdtemp())
    config = load_config(
        overrides={
            "data.path": str(train), "data.validation_path": str(validation), "data.split": {"validation": 0.0, "test": 0.0},
            "out": str(folder / "run"), "train.checkpoint_minutes": 1e9, "train.validate_every": 1,
            "train.validate_max_seconds": 600, **RECIPES[options.recipe], **{".".join(key): value for key, value in map(parse_override, options.set)},
        }
    )  # fmt: skip
    prepared = prepare(config)
    model, _ = fit.starting_point(config, prepared)
    validator = Validator(prepared, config)
    spent, due, curve = [0.0], [0.0], []

    def validate(current: Any, count: int | None) -> dict[str, float]:
        """Validate when it is due, off the clock."""
        begun = time.monotonic()
        trained = begun - started - spent[0]
        metrics = {"exact_match": 0.0, "num_items": 1.0}
        if trained >= due[0]:
            metrics = validator(current, None)
            curve.append((round(trained, 1), metrics["exact_match"]))
            due[0] = trained + options.every
        spent[0] += time.monotonic() - begun
        if metrics["exact_match"] >= target or trained > 60 * options.minutes:
            raise Reached
        return metrics | {"num_items": 1.0}

    trainer = Trainer(model, prepared.encoded, config.train, folder, validate)
    started = time.monotonic()
    try:
        trainer.run(quiet=True)
    except Reached:
        pass
    seconds, best = time.monotonic() - started - spent[0], max((e for _, e in curve), default=0.0)
    shutil.rmtree(folder)
    common.report(seconds=seconds, exact_match=best, reached=best >= target, curve=curve, steps=trainer.state.step)
