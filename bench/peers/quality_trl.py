"""Training time until TRL reaches an exact match on 200 validation rows.

`quality_trl.py WORK --task dates --target 0.9 --minutes 15 [--tuned]`; `quality_one.py` makes the tables.
At its defaults (but fp32; see train_trl.py), or `--tuned`: with the rate that seqtune gives AdamW at this size (or `--rate`), as many rows
a batch as make 2,048 tokens, and a cosine schedule. The time of validations is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

BUDGET = 2048  # tokens a batch


def read(path: Path) -> list[dict[str, str]]:
    """Prompt and completion of each row."""
    with path.open(newline="", encoding="utf-8") as handle:
        return [{"prompt": row["input"] + "\n", "completion": row["output"]} for row in csv.DictReader(handle)]


class Watch(TrainerCallback):
    """Validates every few seconds, off the clock, and stops at the target."""

    def __init__(self, tokenizer, rows, target, minutes, every):
        self.tokenizer, self.rows, self.target = tokenizer, rows, target
        self.minutes, self.every = minutes, every
        self.spent, self.due, self.curve = 0.0, every, []

    def on_train_begin(self, *_, **__):
        """Start the clock."""
        self.started = time.monotonic()

    def on_step_end(self, args, state, control, model=None, **_):
        """Validate when it is due."""
        begun = time.monotonic()
        trained = self.seconds = begun - self.started - self.spent
        self.steps = state.global_step
        if trained >= self.due:
            model.eval()
            self.curve.append((round(trained, 1), self.exact_match(model)))
            model.train()
            self.due = trained + self.every
            control.should_training_stop = self.curve[-1][1] >= self.target
        control.should_training_stop |= trained > 60 * self.minutes
        self.spent += time.monotonic() - begun
        return control

    @torch.inference_mode()
    def exact_match(self, model) -> float:
        """Share of rows that greedy decoding gets right."""
        self.tokenizer.padding_side = "left"
        right = 0
        for start in range(0, len(self.rows), 50):
            part = self.rows[start : start + 50]
            batch = self.tokenizer([r["prompt"] for r in part], return_tensors="pt", padding=True)
            out = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=64, do_sample=False
            )
            texts = self.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            right += sum(text.strip() == row["completion"].strip() for text, row in zip(texts, part, strict=True))
        return right / len(self.rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", required=True, help="the tables lie in WORK/task-TASK")
    parser.add_argument("--target", type=float, required=True, help="exact match to reach")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--rate", type=float, default=1.4e-3)
    parser.add_argument("--every", type=float, default=8.0)
    options = parser.parse_args()
    folder = options.work / f"task-{options.task}"
    tokenizer = AutoTokenizer.from_pretrained(options.work / "base" / "model")
    model = AutoModelForCausalLM.from_pretrained(options.work / "base" / "model", dtype="float32")
    train, validation = read(folder / "train.csv"), read(folder / "validation.csv")
    sample = tokenizer([row["prompt"] + row["completion"] for row in train[:2000]])["input_ids"]
    tuned = {
        "learning_rate": options.rate, "per_device_train_batch_size": round(BUDGET * len(sample) / sum(map(len, sample))), "lr_scheduler_type": "cosine", "warmup_steps": 0.03,
        "max_grad_norm": 1.0, "num_train_epochs": 5,
    }  # fmt: skip
    arguments = SFTConfig(
        tempfile.mkdtemp(), save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        bf16=False, **(tuned if options.tuned else {}),
    )  # fmt: skip
    watch = Watch(tokenizer, validation, options.target, options.minutes, options.every)
    SFTTrainer(model, arguments, train_dataset=Dataset.from_list(train), processing_class=tokenizer, callbacks=[watch]).train()
    best = max((e for _, e in watch.curve), default=0.0)
    found = {"seconds": watch.seconds, "exact_match": best, "reached": best >= options.target}
    print("RESULT " + json.dumps(found | {"curve": watch.curve, "steps": watch.steps}))
