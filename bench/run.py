"""Side by side with the peers: `make bench`, or `python bench/run.py --only training --repeats 3`.

Every measurement is a process of its own; variants alternate (A B A B); medians and ratios are reported. Peers live in environments
of their own, made from `bench/peers/*.txt` under `--work`; one that cannot be installed is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import common
import tasks

HERE = Path(__file__).parent
SECTIONS = ("training", "decoding", "quality", "data", "startup", "adapters")
MAKE = "import sys; sys.path.insert(0, {0!r}); from pathlib import Path; import pubchem_one; pubchem_one.make(Path({1!r}), {2})"
METHODS = (
    "full", "lora", "qlora", "oft", "ia3", "bottleneck", "prompt_tuning", "p_tuning", "prefix_tuning", "bitfit", "layers",
)  # fmt: skip


@dataclass
class Variant:
    """One contender: a name and the command that measures it."""

    name: str
    command: list[str]
    results: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None


def python_of(peer: str, work: Path) -> str | None:
    """The interpreter of a peer's environment, made when first asked for; `None` if it cannot be installed."""
    folder = work / "environments" / peer
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        for arguments in (["torch==2.13.0"], ["-r", str(HERE / "peers" / f"{peer}.txt")]):
            done = subprocess.run([*install, *arguments], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{peer} cannot be installed and is left out: {done.stderr.strip().splitlines()[-1]}", flush=True)
                return None
        (folder / "installed").touch()
    return str(python)


def measure(variants: list[Variant], repeats: int, threads: int, limit: float) -> None:
    """Run all variants in turn, `repeats` times."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for _ in range(repeats):
        for variant in variants:
            if variant.failure:
                continue
            try:
                done = subprocess.run(
                    variant.command, capture_output=True, text=True, check=False, env=environment, timeout=limit
                )
            except subprocess.TimeoutExpired:
                variant.failure = f"not done after {limit:.0f} s"
                continue
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                variant.failure = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
                continue
            variant.results.append(json.loads(lines[-1].removeprefix("RESULT ")))
            print(f"    {variant.name}: {variant.results[-1].get('seconds', 0):.2f} s", flush=True)


def median(variant: Variant, value: Any) -> float | None:
    """Median over the repeats of a value computed from each result."""
    return statistics.median(map(value, variant.results)) if variant.results else None


def table(variants: list[Variant], columns: dict[str, Any], reference: str) -> list[dict[str, Any]]:
    """Rows of medians, and how many times as fast each is as the reference variant (by the first column)."""
    first = next(iter(columns.values()))
    base = next((median(v, first) for v in variants if v.name == reference), None)
    rows = []
    for variant in variants:
        row: dict[str, Any] = {"variant": variant.name}
        row |= {name: median(variant, value) for name, value in columns.items()}
        own = median(variant, first)
        row[f"x {reference}"] = own / base if own and base else None
        row["failure"] = variant.failure
        rows.append(row)
    return rows


TRAINING = (  # shape, batch, steps (warm-up comes on top)
    ("opt-125m", 32, 2), ("opt-125m", 4, 8), ("smollm2-135m", 32, 2), ("smollm2-135m", 4, 8), ("gpt-neo-8m", 32, 4), ("gpt-neo-1m", 32, 6), ("llama-15m", 32, 4),
    ("base", 32, 8),
)  # fmt: skip


def training(work: Path, repeats: int, threads: int, shapes: list[str]) -> dict[str, Any]:
    """Real (non-padding) tokens a second of one optimizer step after the other."""
    found = {}
    trl = python_of("trl", work)
    for shape, batch, steps in TRAINING:
        if shapes and shape not in shapes:
            continue
        folder = work / shape
        common.make_model(shape, folder / "model")
        common.make_table(folder / "pairs.csv", 4000)
        size = [str(folder), "--batch", str(batch), "--steps", str(steps), "--warm", "1" if batch == 32 else "2"]
        ours = [sys.executable, str(HERE / "train_seqtune.py"), *size]
        ours[ours.index("--steps") + 1] = str(steps * 4)  # length buckets differ from step to step: more of them
        variants = [
            Variant("HF Trainer", [sys.executable, str(HERE / "peers" / "train_hf.py"), *size]),
            Variant("seqtune fp32", ours),
            Variant("seqtune", [*ours, "--precision", "auto"]),
        ]
        if trl:
            script = str(HERE / "peers" / "train_trl.py")
            variants[1:1] = [Variant("TRL", [trl, script, *size]), Variant("TRL packed", [trl, script, *size, "--packed"])]
        print(f"  {shape}, batch {batch}", flush=True)
        measure(variants, repeats, threads, 600)
        columns = {
            "tokens/s": lambda r: r["tokens"] / r["seconds"],
            "examples/s": lambda r: r["rows"] / r["seconds"],
            "peak MiB": lambda r: r["peak_mib"],
            "share of ceiling": lambda r: (
                r["flops"] / r["seconds"] / 1e9 / r["ceiling_gflops"] if "flops" in r else float("nan")
            ),
        }
        found[f"{shape} batch {batch}"] = table(variants, columns, "HF Trainer")
    return found


def adapters(work: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Peak memory and speed of every method on OPT-125M, whole vocabulary, 8 rows a step."""
    folder = work / "opt-125m"
    common.make_model("opt-125m", folder / "model")
    common.make_table(folder / "pairs.csv", 4000)
    command = [sys.executable, str(HERE / "train_seqtune.py"), str(folder), "--batch", "8", "--steps", "4", "--warm", "1"]
    command += ["--set", "model.trim_vocabulary=false", "--set", "adapter.layers=[]"]
    variants = []
    for method in METHODS:
        layers = "['*.layers.11.*']" if method == "layers" else "[]"
        variants.append(Variant(method, [*command[:-1], f"adapter.layers={layers}", "--set", f"adapter.method={method}"]))
    measure(variants, repeats, threads, 300)
    columns = {
        "peak MiB": lambda r: r["peak_mib"],
        "tokens/s": lambda r: r["tokens"] / r["seconds"],
        "loss": lambda r: r["loss"],
    }
    return {"adapters on opt-125m": table(variants, columns, "full")}


def decoding(work: Path, repeats: int, threads: int, shapes: list[str], run: Path | None) -> dict[str, Any]:
    """Sequences a second; every variant's outputs are compared with those of transformers at the same batch."""
    found = {}
    cases: list[tuple[str, Path, list[str]]] = []
    for shape in ("opt-125m", "opt-125m-trimmed", "smollm2-135m-trimmed"):
        if shapes and shape not in shapes:
            continue
        common.make_model(shape, work / shape / "model")
        common.make_table(work / shape / "pairs.csv", 4000)
        cases.append((f"{shape}, 64 new tokens", work / shape, ["--new", "64", "--inputs", "32"]))
    if run is not None:
        cases.append(("trained run, real ends", run, ["--inputs", "256"]))
    script = str(HERE / "decode_one.py")
    for title, path, options in cases:
        for beams in (5, 1):
            engines = [("transformers", 8), ("transformers", 32), ("ctranslate2", 32), ("native", 32)]
            variants = [
                Variant(
                    f"{engine} batch {batch}",
                    [
                        sys.executable,
                        script,
                        str(path),
                        "--engine",
                        engine,
                        "--batch",
                        str(batch),
                        "--num-beams",
                        str(beams),
                        *options,
                    ],
                )
                for engine, batch in engines
            ]
            for engine in ("ctranslate2", "native"):
                command = variants[2 if engine == "ctranslate2" else 3].command
                variants.append(Variant(f"{engine} int8 batch 32", [*command, "--weights", "int8"]))
            print(f"  {title}, {beams} beams", flush=True)
            measure(variants, repeats, threads, 900)
            reference = variants[1].results[0]["digests"] if variants[1].results else []
            columns = {
                "sequences/s": lambda r: r["sequences"] / r["seconds"],
                "same as transformers": partial(_share_equal, reference),
                "peak MiB": lambda r: r["peak_mib"],
            }
            found[f"{title}, {beams} beams"] = table(variants, columns, "transformers batch 32")
    return found


def _share_equal(reference: list[str], result: dict[str, Any]) -> float:
    """Share of the inputs whose best hypothesis is the reference's, token for token."""
    return sum(a == b for a, b in zip(result["digests"], reference, strict=True)) / max(1, len(reference))


def startup(work: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds until something is there."""
    code = "import time; s = time.perf_counter(); {}; print('RESULT {{\"seconds\": %f}}' % (time.perf_counter() - s))"
    help_code = code.format("import subprocess, sys; subprocess.run([sys.executable, '-m', 'seqtune', '--help'], stdout=-3)")
    first = [sys.executable, str(HERE / "train_seqtune.py"), str(work / "base"), "--batch", "8", "--steps", "1", "--warm", "1"]
    common.make_model("base", work / "base" / "model")
    common.make_table(work / "base" / "pairs.csv", 4000)
    whole = code.format(f"import subprocess; subprocess.run({first!r}, stdout=-3, stderr=-3)")
    variants = [
        Variant("seqtune --help", [sys.executable, "-c", help_code]),
        Variant("import seqtune", [sys.executable, "-c", code.format("import seqtune")]),
        Variant("two training steps from a CSV", [sys.executable, "-c", whole]),
    ]
    measure(variants, max(repeats, 5), threads, 300)
    return {"start-up": table(variants, {"seconds": lambda r: r["seconds"]}, "seqtune --help")}


def data(work: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Rows a second of encoding (the first time and from the cache) and of the metrics."""
    common.make_model("base", work / "base" / "model")
    common.make_table(work / "base" / "pairs.csv", 4000)
    script = str(HERE / "data_one.py")
    names = ("encode", "encode, cached", "metrics")
    variants = [Variant(n, [sys.executable, script, str(work), "--what", n]) for n in names]
    measure(variants, repeats, threads, 300)
    columns = {"rows/s": lambda r: r["rows"] / r["seconds"], "peak MiB": lambda r: r["peak_mib"]}
    found = {"data": table(variants, columns, "encode")}
    join = str(HERE / "pubchem_one.py")
    for rows in (2_000_000, 5_000_000):
        subprocess.run(
            [sys.executable, "-c", MAKE.format(str(HERE), str(work), rows)], check=True
        )  # made outside the clock and the limit
        engines = {"seqtune": sys.executable, "polars": sys.executable, "pandas": python_of("pandas", work)}
        joins = [Variant(n, [p, join, str(work), "--engine", n, "--rows", str(rows)]) for n, p in engines.items() if p]
        measure(joins, repeats, threads, 600)
        found[f"PubChem join, {rows:,} rows"] = table(joins, columns, "polars")
    return found


def quality(work: Path, repeats: int, threads: int, minutes: float) -> dict[str, Any]:
    """Wall time until an exact match on the validation rows; a peer that has not got there by the limit is reported so."""
    trl = python_of("trl", work)
    script = str(HERE / "quality_one.py")
    common.make_model("base", work / "base" / "model")
    found = {}
    for task in tasks.TASKS:
        target = tasks.prepare(work, task)[2]
        asked = [str(work), "--task", task, "--minutes", str(minutes)]
        ours = [sys.executable, script, *asked]
        variants = [Variant("seqtune", ours), Variant("paper's recipe", [*ours, "--recipe", "paper"])]
        if trl:
            peer = [trl, str(HERE / "peers" / "quality_trl.py"), *asked, "--target", str(target)]
            variants += [Variant("TRL", peer), Variant("TRL, our rate and batch", [*peer, "--tuned"])]
        print(f"  {task}, {target:.0%} exact match", flush=True)
        measure(variants, repeats, threads, 60 * minutes + 300)
        columns = {
            "speed": lambda r: 1 / r["seconds"],
            "seconds": lambda r: r["seconds"],
            "exact match": lambda r: r["exact_match"],
            "reached": lambda r: float(r["reached"]),
        }
        found[f"time to {target:.0%} exact match, {task}"] = table(variants, columns, "seqtune")
    return found


def markdown(found: dict[str, Any]) -> str:
    """All tables as text."""
    lines = ["# Benchmarks", "", f"`{json.dumps(found['machine'])}`", ""]
    for section, tables in found["sections"].items():
        lines += [f"## {section}", ""]
        for title, rows in tables.items():
            names = [n for n in rows[0] if n != "failure"]
            lines += [f"### {title}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            for row in rows:
                cells = [row["failure"] if row["failure"] and v is None else _cell(v) for v in (row[n] for n in names)]
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or "-"
    return "-" if value != value else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(found: dict[str, Any], path: Path) -> None:
    """Ratios to the reference, a bar each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = [(title, rows) for tables in found["sections"].values() for title, rows in tables.items()]
    figure, axes = pyplot.subplots(len(tables), 1, figsize=(8, 0.5 + 1.7 * len(tables)), squeeze=False)
    for axis, (title, rows) in zip(axes[:, 0], tables, strict=True):
        ratio = next(name for name in rows[0] if name.startswith("x "))
        shown = [row for row in rows if row[ratio]]
        bars = axis.barh([r["variant"] for r in shown], [r[ratio] for r in shown], color="#4477aa")
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.invert_yaxis()
        axis.set_title(f"{title} ({ratio})", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the chosen sections and write JSON, a table and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--shapes", nargs="*", default=[], help="shapes to train and decode; default all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=15, help="limit of each time-to-quality run")
    parser.add_argument("--run", type=Path, help="a trained run folder, decoded to its real ends")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    work, repeats, threads = options.work, options.repeats, options.threads
    sections = {
        "training": lambda: training(work, repeats, threads, options.shapes),
        "decoding": lambda: decoding(work, repeats, threads, options.shapes, options.run),
        "quality": lambda: quality(work, repeats, threads, options.minutes),
        "data": lambda: data(work, repeats, threads),
        "startup": lambda: startup(work, repeats, threads),
        "adapters": lambda: adapters(work, repeats, threads),
    }
    found: dict[str, Any] = {"machine": common.machine() | {"threads": threads}, "repeats": repeats, "sections": {}}
    for name in options.only:
        print(name, flush=True)
        started = time.perf_counter()
        found["sections"][name] = sections[name]()
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
        stem = options.out / "-".join(found["sections"])
        stem.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
        stem.with_suffix(".md").write_text(markdown(found))
    plot(found, stem.with_suffix(".png"))
    print(markdown(found))


if __name__ == "__main__":
    main()
