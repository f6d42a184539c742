"""A stream of (SMILES, name) frames -> a curated table, with a count per rule and every dropped row beside it.

Rows go to worker processes, or to a Ray cluster, a frame at a time; what is kept is written as it comes, and
duplicates are found at the end from 16 bytes a row on disk. Memory does not grow with the number of rows.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow.parquet

from seqtune.chem import opsin
from seqtune.chem.curation import Curated, Curation, curate
from seqtune.chem.isolation import Failure, Workers, workers
from seqtune.errors import ConfigError, DataError
from seqtune.progress import console

PIECE = 200  # rows a worker process takes at once
PART = 2**21  # hashes looked at together when duplicates are searched for
BATCH = 50_000  # rows read back at once
REPEATS = {1: "SMILES seen before", 2: "name seen before"}
KINDS = (".csv", ".tsv", ".parquet")
Frames = Iterator[polars.DataFrame]


def settled(curation: Curation) -> Curation:
    """The curation as this machine can do it; without Java names are not verified, and that is said."""
    if curation.preset != "open":
        return curation
    try:
        opsin.find()
    except opsin.JavaMissingError as error:
        console().print(f"names are not verified: {error}", style="yellow", markup=False)
        return Curation(curation.preset, curation.form, curation.num_random, curation.selfies, curation.keys, False)
    return curation


def curated_frame(frame: polars.DataFrame, curation: Curation, pool: Workers) -> polars.DataFrame:
    """The frame with `smiles` in its new form, the columns that the curation adds, and `rule` (null: kept).

    Args:
        frame: columns `smiles`, `iupac` and any others [N].
        curation: what is kept, and which columns are added.
        pool: the processes that do it.
    """
    asked = zip(frame["smiles"].to_list(), frame["iupac"].to_list(), strict=True)
    outcomes = pool.map_pieces(partial(curate, curation), asked, PIECE)
    rows = [Curated(f"{o.reason} in RDKit") if isinstance(o, Failure) else o for o in outcomes]
    kept = [r.rule is None for r in rows]
    added = {"rule": polars.Series([r.rule for r in rows], dtype=polars.String)}
    added["smiles"] = polars.Series([r.smiles if k else s for r, k, s in zip(rows, kept, frame["smiles"], strict=True)])
    if curation.keys:
        added |= {"skeleton": polars.Series([r.skeleton for r in rows]), "scaffold": polars.Series([r.scaffold for r in rows])}
    if curation.selfies:
        added["selfies"] = polars.Series([r.selfies for r in rows])
    if curation.num_random:
        added["input_smiles"] = polars.Series([list(r.inputs) for r in rows], dtype=polars.List(polars.String))
    return frame.with_columns(**added)


def curated_here(frames: Frames, curation: Curation) -> Frames:
    """Curate in this machine's worker processes."""
    for frame in frames:
        if curation.reads_structures:
            yield curated_frame(frame, curation, workers())
        else:
            yield frame


def write_table(frames: Frames, curation: Curation, out: Path, counts: Counter[str]) -> dict[str, int]:
    """Write curated frames, less duplicates, to `out`, and the dropped rows to `out`'s name + `.dropped.parquet`.

    Args:
        frames: from `curated_here` or the Ray path.
        curation: whether there is anything but copying to be done.
        out: .csv, .tsv or .parquet.
        counts: filled; rows read, rows dropped by each rule, rows kept.

    Raises:
        ConfigError: another file ending.
        DataError: no row is kept.
    """
    check_kind(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        final, dropped = _Writer(Path(folder) / f"final{out.suffix}"), _Writer(Path(folder) / "dropped.parquet")
        if curation.reads_structures:
            _write_different(frames, Path(folder), final, dropped, counts)
        else:
            for frame in frames:
                counts["kept"] += frame.height
                final.write(frame)
        final.close()
        dropped.close()
        if not counts["kept"]:
            raise DataError(f"no row is kept; {_account(counts)}")
        if dropped.path.exists():
            dropped.path.replace(out.with_name(out.name + ".dropped.parquet"))
        final.path.replace(out)
    return {rule: number for rule, number in counts.items() if number}


def _account(counts: Counter[str]) -> str:
    return ", ".join(f"{rule}: {number:,}" for rule, number in counts.items())


def _write_different(frames: Frames, scratch: Path, final: _Writer, dropped: _Writer, counts: Counter[str]) -> None:
    """Write the kept rows that repeat no earlier one; the others, with their rules, to `dropped`."""
    kept = _Writer(scratch / "kept.parquet")
    columns = ["cid", "smiles", "iupac", "rule"]
    with (scratch / "hashes").open("wb") as hashes:
        for frame in frames:
            counts["rows"] += frame.height
            for rule, number in frame["rule"].drop_nulls().value_counts().iter_rows():
                counts[rule] += number
            dropped.write(frame.filter(polars.col("rule").is_not_null()).select(columns))
            good = frame.filter(polars.col("rule").is_null()).drop("rule")
            kept.write(good)
            pairs = np.column_stack([good["smiles"].hash(0).to_numpy(), good["iupac"].hash(0).to_numpy()])
            hashes.write(np.ascontiguousarray(pairs, dtype=np.uint64).tobytes())
    kept.close()
    repeats = _repeats(scratch / "hashes")
    start = 0
    for batch in pyarrow.parquet.ParquetFile(kept.path).iter_batches(BATCH) if len(repeats) else ():
        frame = polars.DataFrame(batch)
        reasons = polars.Series(repeats[start : start + frame.height])
        start += frame.height
        for code, rule in REPEATS.items():
            again = frame.filter(reasons == code)
            counts[rule] += again.height
            dropped.write(again.with_columns(rule=polars.lit(rule, polars.String)).select(columns))
        frame = frame.filter(reasons == 0)
        counts["kept"] += frame.height
        final.write(frame.explode("input_smiles") if "input_smiles" in frame.columns else frame)


def check_kind(out: Path) -> None:
    """Refuse a table of a kind that is not written.

    Raises:
        ConfigError: names the endings that are.
    """
    if out.suffix not in KINDS:
        raise ConfigError(f"--out {str(out)!r}: the file must end in {', '.join(KINDS)}")


def _repeats(path: Path) -> np.ndarray:
    """For each kept row 0, or 1 if an earlier row has its SMILES, or 2 if an earlier row that stays has its name, uint8 [N].

    Rows are told apart by 64-bit hashes: among 100 million rows the chance that any two collide is 3 in 10,000.
    """
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)
    hashes = np.memmap(path, np.uint64, "r").reshape(-1, 2)
    reasons = np.zeros(len(hashes), np.uint8)
    num_parts = 1 + len(hashes) // PART
    for column, code in enumerate(REPEATS):
        for part in range(num_parts):  # hashes that agree modulo the number of parts are looked at together
            rows = np.concatenate(
                [
                    start + np.flatnonzero(_in_part(hashes[start : start + PART, column], part, num_parts))
                    for start in range(0, len(hashes), PART)
                ]
            )
            rows = rows[reasons[rows] == 0]
            _, first = np.unique(hashes[rows, column], return_index=True)
            again = np.ones(len(rows), bool)
            again[first] = False
            reasons[rows[again]] = code
    return reasons


def _in_part(values: np.ndarray, part: int, num_parts: int) -> np.ndarray:
    return values % np.uint64(num_parts) == part


class _Writer:
    """Appends frames to a table, in a thread: compressing one frame goes on while the next one is made."""

    def __init__(self, path: Path):
        self.path = path
        self.handle: Any = None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self.under_way: Future[None] | None = None

    def write(self, frame: polars.DataFrame) -> None:
        """Hand a frame over, once the one before it is written."""
        if frame.height:
            self._wait()
            self.under_way = self.pool.submit(self._append, frame)

    def _wait(self) -> None:
        if self.under_way is not None:
            self.under_way.result()

    def _append(self, frame: polars.DataFrame) -> None:
        if self.path.suffix == ".parquet":
            table = frame.to_arrow()
            if self.handle is None:  # texts hardly ever repeat, so dictionaries of them would be made for nothing
                options: Any = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
                self.handle = pyarrow.parquet.ParquetWriter(self.path, table.schema, **options)
            self.handle.write_table(table)
        else:
            first = self.handle is None
            self.handle = self.handle or self.path.open("wb")
            frame.write_csv(self.handle, include_header=first, separator="\t" if self.path.suffix == ".tsv" else ",")

    def close(self) -> None:
        """Finish the file."""
        self._wait()
        self.pool.shutdown()
        if self.handle is not None:
            self.handle.close()
