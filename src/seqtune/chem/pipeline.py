"""A stream of (SMILES, name) frames -> a curated table, with a count per rule and every dropped row beside it.

Rows go to worker processes, or to a Ray cluster, a frame at a time; what is kept is written as it comes, and
duplicates are found at the end from 16 bytes a row on disk. Memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Full, Queue

import numpy as np
import polars
from polars.io.plugins import register_io_source

from seqtune import folders
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
    with folders.scratch(out.with_name(f"{out.name}.parts")) as folder:
        folder.mkdir()
        with _Writer(folder / f"final{out.suffix}") as final, _Writer(folder / "dropped.parquet") as dropped:
            if curation.reads_structures:
                _write_different(frames, folder, final, dropped, counts)
            else:
                for frame in frames:
                    counts["kept"] += frame.height
                    final.write(frame)
        if not counts["kept"]:
            raise DataError(f"no row is kept; {_account(counts)}")
        if dropped.path.exists():
            with folders.writing(out.with_name(out.name + ".dropped.parquet")) as hidden:
                dropped.path.replace(hidden)
        with folders.writing(out) as hidden:
            final.path.replace(hidden)
    return {rule: number for rule, number in counts.items() if number}


def _account(counts: Counter[str]) -> str:
    return ", ".join(f"{rule}: {number:,}" for rule, number in counts.items())


def _write_different(frames: Frames, scratch: Path, final: _Writer, dropped: _Writer, counts: Counter[str]) -> None:
    """Write the kept rows that repeat no earlier one; the others, with their rules, to `dropped`."""
    columns = ["cid", "smiles", "iupac", "rule"]
    with _Writer(scratch / "kept.parquet") as kept, (scratch / "hashes").open("wb") as hashes:
        for frame in frames:
            counts["rows"] += frame.height
            for rule, number in frame["rule"].drop_nulls().value_counts().iter_rows():
                counts[rule] += number
            dropped.write(frame.filter(polars.col("rule").is_not_null()).select(columns))
            good = frame.filter(polars.col("rule").is_null()).drop("rule")
            kept.write(good)
            pairs = np.column_stack([good["smiles"].hash(0).to_numpy(), good["iupac"].hash(0).to_numpy()])
            hashes.write(np.ascontiguousarray(pairs, dtype=np.uint64).tobytes())
    repeats = _repeats(scratch / "hashes")
    for start in range(0, len(repeats), BATCH):
        frame = polars.scan_parquet(kept.path).slice(start, BATCH).collect()
        reasons = polars.Series(repeats[start : start + BATCH])
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
    """Appends frames to a table, made with the first one; polars writes them in a thread while the next ones come."""

    def __init__(self, path: Path):
        self.path = path
        self.waiting: Queue[polars.DataFrame | None] = Queue(maxsize=1)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self.writing: Future[None] | None = None

    def __enter__(self) -> _Writer:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the file, and let the thread end whatever happened."""
        try:
            if self.writing:
                self._put(None)
                self.writing.result()
        finally:
            self.pool.shutdown()

    def write(self, frame: polars.DataFrame) -> None:
        """Hand a frame over, once the one before it is taken."""
        if frame.height:
            self.writing = self.writing or self.pool.submit(self._sink, frame.schema)
            self._put(frame)

    def _put(self, frame: polars.DataFrame | None) -> None:
        assert self.writing, "begun by the first frame"
        while not self.writing.done():
            try:
                self.waiting.put(frame, timeout=1.0)
            except Full:
                continue
            return
        self.writing.result()  # nothing takes frames any more: says why

    def _sink(self, schema: polars.Schema) -> None:
        frames = register_io_source(self._frames, schema=schema)
        if self.path.suffix == ".parquet":
            frames.sink_parquet(self.path, compression_level=1)
        else:
            frames.sink_csv(self.path, separator="\t" if self.path.suffix == ".tsv" else ",")

    def _frames(self, *_: object) -> Frames:
        while (frame := self.waiting.get()) is not None:
            yield frame
