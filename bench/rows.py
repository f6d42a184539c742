"""How many rows a second go from a table to the first training step, and the most memory on the way.

    python bench/rows.py make TABLE.csv --rows 1000000        # 90 characters a row, from a seed
    python bench/rows.py run TABLE.csv --cache FOLDER         # a second time: from the cache

`run` prints a line of JSON: the seconds of imports and of each hop, rows a second without imports, and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

PARTS = {
    "C(=O)N": "carboxamido", "C(=O)O": "carboxy", "c1ccccc1": "phenyl", "C1CCNCC1": "piperidyl", "OC": "methoxy", "CC": "ethyl",
    "Cl": "chloro", "F": "fluoro", "Br": "bromo", "S(=O)(=O)": "sulfonyl", "C#N": "cyano", "N(C)C": "dimethylamino",
    "C1CC1": "cyclopropyl", "c1ccncc1": "pyridyl", "CCC": "propyl", "C(F)(F)F": "trifluoromethyl",
}  # fmt: skip
WIDTH = 90  # characters of a line


def make(path: Path, count: int) -> None:
    """A table whose lines have about 90 characters and hardly repeat; its names are no chemistry."""
    draw = random.Random(0)
    parts = list(PARTS.items())
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["input", "output"])
        for _ in range(count):
            smiles, name = "C", "ane"
            while len(smiles) + len(name) < WIDTH - 14:
                written, spoken = parts[draw.randrange(len(parts))]
                smiles, name = f"{smiles}{written}", f"{draw.randrange(1, 9)}-{spoken}-{name}"
            writer.writerow([smiles, name])


def run(path: Path, settings: dict[str, object]) -> dict[str, object]:
    """Everything from the file to the first step of training `builtin:base`."""
    times = {"start": time.perf_counter()}
    from seqtune.config import load_config
    from seqtune.procedures import fit
    from seqtune.training.processes import process_state

    with tempfile.TemporaryDirectory() as scratch:
        config = load_config(overrides={"data.path": str(path), "out": f"{scratch}/run", **settings})
        process_state()
        times["imports"] = time.perf_counter()
        cpu = time.process_time()
        prepared = fit.prepare(config)
        times["prepare"] = time.perf_counter()
        prepared_mib = peak_mib()
        model, _ = fit.starting_point(config, prepared)
        Path(config.out or "").mkdir()
        trainer = fit._trainer(config, prepared, model, Path(config.out or ""))
        times["plan"] = time.perf_counter()
        trainer._started = time.monotonic()
        trainer._step(next(trainer.feed.steps_from(0, 0, 0)))
        times["step"] = time.perf_counter()
        cpu = time.process_time() - cpu
    names = list(times)
    seconds = {after: round(times[after] - times[before], 2) for before, after in itertools.pairwise(names)}
    return {
        "rows": prepared.num_rows,
        "seconds": seconds,
        "cpu_seconds": round(cpu, 2),
        "rows_per_second": round(prepared.num_rows / (times["step"] - times["imports"])),
        "prepared_mib": prepared_mib,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> int:
    """The most resident memory so far, of this process alone: `ru_maxrss` starts at that of the process that began this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run"])
    parser.add_argument("table", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cache", help="folder of the token cache; default: a new one")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.what == "make":
        make(options.table, options.rows)
    else:
        with tempfile.TemporaryDirectory() as fresh:
            os.environ["SEQTUNE_CACHE"] = options.cache or fresh
            print(json.dumps(run(options.table, dict(each.split("=", 1) for each in options.set))))
