"""One training measurement of TRL's SFTTrainer on prompt-completion pairs.

`train_trl.py WORK --batch 32 --steps 6 --warm 2 [--packed]`: at its defaults except that bf16 is off (on CPUs without bf16 units it
would be several times slower still), or packed, completion-only and without gradient checkpointing, its best setting. With
`--bf16` nothing is changed at all.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import tempfile
import time
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Times whole optimizer steps after the warm-up."""

    def __init__(self, warm: int):
        self.warm, self.started = warm, 0.0

    def on_step_end(self, args, state, control, **_):
        """Start when the warm-up is over."""
        if state.global_step == self.warm:
            self.started = time.perf_counter()

    def on_train_end(self, *_, **__):
        """Stop."""
        self.seconds = time.perf_counter() - self.started


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.work / "model")
    model = AutoModelForCausalLM.from_pretrained(options.work / "model", dtype="float32")
    with (options.work / "pairs.csv").open(newline="", encoding="utf-8") as handle:
        pairs = [{"prompt": r["smiles"] + "\n", "completion": r["iupac"]} for r in csv.DictReader(handle)]
    extra = {"bf16": False} if not options.bf16 else {}
    if options.packed:
        extra |= {"packing": True, "max_length": 512, "gradient_checkpointing": False, "completion_only_loss": True}
    arguments = SFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=max(1, options.batch // 8) if options.packed else options.batch,
        max_steps=options.warm + options.steps, save_strategy="no", report_to="none", logging_strategy="no",
        disable_tqdm=True, dataset_num_proc=None, use_cpu=True, **extra,
    )  # fmt: skip
    clock = Clock(options.warm)
    trainer = SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, callbacks=[clock]
    )
    seen: list[int] = []
    collate = trainer.data_collator

    def counting(batch):
        """Count what is read; the rest is TRL's own."""
        seen.append(sum(len(row["input_ids"]) for row in batch))
        return collate(batch)

    trainer.data_collator = counting
    trainer.train()
    tokens = sum(seen[options.warm : options.warm + options.steps])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": clock.seconds, "tokens": tokens, "rows": options.batch * options.steps, "peak_mib": peak}
    print("RESULT " + json.dumps(found))
