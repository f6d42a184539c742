"""One training measurement of the Hugging Face Trainer at its defaults: whole-sequence loss, random batches padded to the longest.

Runs in any environment with transformers and accelerate: `train_hf.py WORK --batch 32 --steps 6 --warm 2`.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import tempfile
import time
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


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
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.work / "model")
    model = AutoModelForCausalLM.from_pretrained(options.work / "model", dtype="float32")
    with (options.work / "pairs.csv").open(newline="", encoding="utf-8") as handle:
        texts = [row["smiles"] + "\n" + row["iupac"] for row in csv.DictReader(handle)]
    rows = [{"input_ids": [*ids, tokenizer.eos_token_id]} for ids in tokenizer(texts)["input_ids"]]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    seen: list[int] = []

    def collate(batch):
        """Count what is read; the padding is transformers' own."""
        seen.append(sum(len(row["input_ids"]) for row in batch))
        return pad(batch)

    pad = DataCollatorForSeq2Seq(tokenizer)
    clock = Clock(options.warm)
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=options.batch, max_steps=options.warm + options.steps,
        save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
        bf16=options.bf16,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()
    tokens = sum(seen[options.warm : options.warm + options.steps])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": clock.seconds, "tokens": tokens, "rows": options.batch * options.steps, "peak_mib": peak}
    print("RESULT " + json.dumps(found))
