"""Training and decoding on a GPU, one table and one JSON file: `python bench/gpu/throughput.py [--shapes opt-125m]`.

Training: real tokens a second in bf16 and model FLOPs utilisation (6 x block parameters x real tokens, against `--peak`), ours in
length buckets and packed, against the Hugging Face Trainer, at the same batch of 4 and 32 rows and, ours, at 16,384 tokens a step.
Decoding: sequences a second, greedy and 5 beams, against transformers. See `bench/run.py` for the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

import common
import run


def training(shape: str, work: Path, peak: float, steps: int, repeats: int) -> dict[str, Any]:
    """One table a batch size."""
    folder = work / shape
    common.make_model(shape, folder / "model")
    common.make_table(folder / "pairs.csv", 20_000)
    found = {}
    for batch in (4, 32):
        size = [str(folder), "--batch", str(batch), "--steps", str(steps), "--warm", "5"]
        ours = [sys.executable, str(HERE / "train_seqtune.py"), *size, "--precision", "bf16"]
        peer = [sys.executable, str(HERE / "peers" / "train_hf.py"), *size, "--bf16"]
        variants = [
            run.Variant("HF Trainer", peer),
            run.Variant("seqtune, buckets", [*ours, "--set", "train.batching=bucket"]),
            run.Variant("seqtune, packed", [*ours, "--set", "train.batching=pack"]),
        ]
        if batch == 32:
            large = [*ours, "--set", "train.token_budget=16384", "--set", "train.batch_size=null"]
            variants += [
                run.Variant(f"seqtune, {kind}, 16,384 tokens", [*large, "--set", f"train.batching={kind}"])
                for kind in ("bucket", "pack")
            ]
        run.measure(variants, repeats, 8, 600)
        columns = {
            "tokens/s": lambda r: r["tokens"] / r["seconds"],
            "utilisation": lambda r: r["flops"] / r["seconds"] / 1e12 / peak if "flops" in r else float("nan"),
        }
        found[f"{shape}, batch {batch}"] = run.table(variants, columns, "HF Trainer")
    return found


def decoding(shape: str, work: Path, repeats: int) -> dict[str, Any]:
    """Greedy and 5 beams, 64 new tokens, 256 inputs."""
    found = {}
    for beams in (5, 1):
        command = [sys.executable, str(HERE / "decode_one.py"), str(work / shape), "--num-beams", str(beams), "--new", "64"]
        variants = [
            run.Variant(f"{engine} batch {batch}", [*command, "--inputs", "256", "--engine", engine, "--batch", str(batch)])
            for engine, batch in (("transformers", 32), ("transformers", 256), ("native", 32), ("native", 256))
        ]
        run.measure(variants, repeats, 8, 600)
        columns = {"sequences/s": lambda r: r["sequences"] / r["seconds"]}
        found[f"{shape}, {beams} beams"] = run.table(variants, columns, "transformers batch 256")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["opt-125m", "opt-350m", "opt-1.3b", "llama-15m"])
    parser.add_argument("--peak", type=float, default=989.0, help="bf16 TFLOP/s of the GPU; default: H100 SXM, dense")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "machine": common.machine(),
        "repeats": options.repeats,
        "sections": {"training": {}, "decoding": {}},
    }
    for shape in options.shapes:
        found["sections"]["training"] |= training(shape, options.work, options.peak, options.steps, options.repeats)
        found["sections"]["decoding"] |= decoding(shape, options.work, options.repeats)
        (options.out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")
    (options.out / "gpu.md").write_text(run.markdown(found))
    print(run.markdown(found))
