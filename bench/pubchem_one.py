"""One measurement of the PubChem join: `pubchem_one.py WORK --engine seqtune --rows 2000000`.

The files are generated: random pieces of SMILES and names in PubChem's layout, every twentieth name missing. All engines keep SMILES of
at most 100 characters without a dot and write Parquet.
"""

from __future__ import annotations

import argparse
import gzip
import random
import time
from pathlib import Path

PIECES = ["C", "CC", "c1ccccc1", "C(=O)", "N", "O", "C1CCNCC1", "S(=O)(=O)", "F", "Cl", "C#N", "c1ccncc1", "(C)", "OC"]
WORDS = [
    "methyl",
    "ethyl",
    "phenyl",
    "2-",
    "3,4-",
    "amino",
    "oxo",
    "piperidin-1-yl",
    "sulfonyl",
    "(2R)-",
    "fluoro",
    "chloro",
    "benzamide",
    "pyridine",
    "acid",
]


def make(folder: Path, num_rows: int) -> tuple[Path, Path]:
    """Two gzipped files of this many rows, made once."""
    smiles, names = (folder / f"{name}-{num_rows}.gz" for name in ("CID-SMILES", "CID-IUPAC"))
    if not names.exists():
        generator = random.Random(0)
        hidden = names.with_suffix(".part")
        with gzip.open(smiles, "wt", 6) as first, gzip.open(hidden, "wt", 6) as second:
            for cid in range(1, num_rows + 1):
                first.write(f"{cid}\t{''.join(generator.choices(PIECES, k=generator.randint(4, 16)))}\n")
                if cid % 20:
                    second.write(f"{cid}\t{''.join(generator.choices(WORDS, k=generator.randint(3, 14)))}\n")
        hidden.replace(names)
    return smiles, names


def seqtune(smiles: Path, names: Path, out: Path) -> int:
    """Ours."""
    from seqtune.chem.commands import pubchem

    return pubchem(out, "none", smiles, names, max_smiles=100, one_fragment=True)["kept"]


def polars(smiles: Path, names: Path, out: Path) -> int:
    """polars' streaming engine."""
    import polars as pl

    def scan(path: Path, column: str) -> pl.LazyFrame:
        return pl.scan_csv(path, separator="\t", has_header=False, new_columns=["cid", column], quote_char=None)

    joined = scan(smiles, "smiles").join(scan(names, "iupac"), on="cid")
    short = pl.col("smiles").str.len_bytes() <= 100
    joined.filter(short & ~pl.col("smiles").str.contains(".", literal=True)).sink_parquet(out)
    return pl.scan_parquet(out).select(pl.len()).collect().item()


def pandas(smiles: Path, names: Path, out: Path) -> int:
    """pandas."""
    import pandas as pd

    files = ((smiles, "smiles"), (names, "iupac"))
    left, right = (pd.read_csv(p, sep="\t", header=None, names=["cid", c], quoting=3) for p, c in files)
    joined = left.merge(right, on="cid")
    kept = joined[(joined.smiles.str.len() <= 100) & ~joined.smiles.str.contains(".", regex=False)]
    kept.to_parquet(out)
    return len(kept)


if __name__ == "__main__":
    import json

    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--engine", choices=("seqtune", "polars", "pandas"), required=True)
    parser.add_argument("--rows", type=int, default=2_000_000)
    options = parser.parse_args()
    files = make(options.work, options.rows)
    run = {"seqtune": seqtune, "polars": polars, "pandas": pandas}[options.engine]
    started = time.perf_counter()
    kept = run(*files, options.work / f"{options.engine}.parquet")
    seconds = time.perf_counter() - started
    # ru_maxrss would not be below the size of the process that started this one
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    print("RESULT " + json.dumps({"seconds": seconds, "rows": options.rows, "kept": kept, "peak_mib": peak}))
