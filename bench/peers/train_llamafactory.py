"""One training measurement of LLaMA-Factory: `train_llamafactory.py WORK --batch 32 --steps 6 --warm 2`; full fine-tuning, fp32.

Everything else is at its defaults: loss on the answer only, random batches, gradient checkpointing.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import tempfile
import time
from pathlib import Path

from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Times whole optimizer steps after the warm-up, and counts what they read."""

    def __init__(self, warm: int):
        self.warm = warm

    def on_step_end(self, args, state, control, **_):
        """Start when the warm-up is over, and remember the last."""
        if state.global_step == self.warm:
            self.started, self.before = time.perf_counter(), int(state.num_input_tokens_seen)
        self.ended, self.read = time.perf_counter(), int(state.num_input_tokens_seen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warm", type=int, default=2)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    with (options.work / "pairs.csv").open(newline="", encoding="utf-8") as handle:
        rows = [{"instruction": r["smiles"], "output": r["iupac"]} for r in csv.DictReader(handle)]
    (folder / "pairs.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": {"file_name": "pairs.json"}}))
    clock = Clock(options.warm)
    settings = {
        "stage": "sft", "do_train": True, "finetuning_type": "full", "model_name_or_path": str(options.work / "model"),
        "dataset": "pairs", "dataset_dir": str(folder), "template": "empty", "output_dir": str(folder / "out"),
        "per_device_train_batch_size": options.batch, "max_steps": options.warm + options.steps, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "include_num_input_tokens_seen": "non_padding", "logging_steps": 1000,
    }  # fmt: skip
    run_exp(settings, callbacks=[clock])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": clock.ended - clock.started, "tokens": clock.read - clock.before}
    print("RESULT " + json.dumps(found | {"rows": options.batch * options.steps, "peak_mib": peak}))
