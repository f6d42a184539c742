"""One training measurement of seqtune: `train_seqtune.py WORK --batch 32 --steps 6 --warm 2`; AdamW, full fine-tuning."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

import common
from seqtune.config import load_config
from seqtune.procedures.fit import starting_point
from seqtune.tokens.preparation import prepare
from seqtune.training import loop
from seqtune.training.defaults import for_adapter
from seqtune.yaml_files import parse_override

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    extra = {".".join(key): value for key, value in map(parse_override, options.set)}
    config = load_config(
        overrides={
            "data.path": str(options.work / "pairs.csv"), "data.input": "smiles", "data.output": "iupac",
            "data.split": {"validation": 0.0, "test": 0.0}, "model.name": str(options.work / "model"),
            "train.optimizer": "adamw", "train.batch_size": options.batch, "train.precision": options.precision,
            "train.max_steps": options.warm + options.steps, "train.checkpoint_minutes": 1e9, **extra,
        }
    )  # fmt: skip
    prepared = prepare(config)
    model, _ = starting_point(config, prepared)
    folder = Path(tempfile.mkdtemp())
    loop.LOG_EVERY = 1
    settings = for_adapter(config.train, config.adapter.method, sum(p.numel() for p in model.parameters()))
    trainer = loop.Trainer(model, prepared.encoded, settings, folder)
    trainer.checkpoint = lambda: None  # writing is not what is measured
    trainer.run(quiet=True)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    first, last = log[options.warm - 1], log[-1]
    seconds, tokens = last["seconds"] - first["seconds"], last["num_tokens"] - first["num_tokens"]
    common.report(
        seconds=seconds, tokens=tokens, rows=options.batch * options.steps, peak_mib=common.peak_mib(),
        flops=6 * common.num_multiplied(model) * tokens, vocabulary=[prepared.encoder.vocab_size, model.config.vocab_size],
        ceiling_gflops=common.matmul_ceiling(), threads=torch.get_num_threads(), loss=last["loss"],
    )  # fmt: skip
