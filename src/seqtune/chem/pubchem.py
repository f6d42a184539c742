"""PubChem's CID-SMILES and CID-IUPAC files -> one table, streamed: memory stays flat however long the files are.

Both files are `CID <tab> text`, one line a compound, ascending by CID (https://ftp.ncbi.nlm.nih.gov/pubchem/Compound/Extras/).
They are unpacked and parsed in blocks by a thread each, and joined where the blocks overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import polars

from seqtune.data.archives import BROKEN, COMPRESSIONS, unpacked
from seqtune.errors import DataError

BLOCK = 3 * 2**19  # unpacked bytes parsed at once
UNPARSED = (polars.exceptions.PolarsError, polars.exceptions.PanicException)


def within(
    frame: polars.DataFrame,
    counts: Counter[str],
    max_smiles: int | None = None,
    max_name: int | None = None,
    *,
    one_fragment: bool = False,
) -> polars.DataFrame:
    """The rows whose texts are within the limits; what is left out is counted by reason."""
    rules: dict[str, polars.Expr] = {}
    if max_smiles:
        rules["SMILES too long"] = polars.col("smiles").str.len_bytes() > max_smiles
    if max_name:
        rules["name too long"] = polars.col("iupac").str.len_bytes() > max_name
    if one_fragment:
        rules["several fragments"] = polars.col("smiles").str.contains(".", literal=True)
    for reason, rule in rules.items():
        before = frame.height
        frame = frame.filter(~rule)
        counts[reason] += before - frame.height
    return frame


def joined(smiles: Path, names: Path, counts: Counter[str]) -> Iterator[polars.DataFrame]:
    """The compounds that both files know, columns `cid`, `smiles`, `iupac`, in frames of about a block.

    Args:
        smiles: CID-SMILES, plain or .gz.
        names: CID-IUPAC, likewise.
        counts: filled; records per file.

    Raises:
        DataError: a file is missing, broken, or not ascending by CID.
    """
    with ThreadPoolExecutor(2, thread_name_prefix="unpack") as pool:
        sides = [_Side(smiles, "smiles", pool, counts), _Side(names, "iupac", pool, counts)]
        while all(side.fill() for side in sides):
            limit = min(side.last for side in sides)
            left, right = (side.take(limit) for side in sides)
            # both ascend, so what each has in common with the other stands in the same order
            common = left.filter(left["cid"].is_in(right["cid"].implode()))
            yield common.with_columns(right.filter(right["cid"].is_in(left["cid"].implode()))["iupac"])
        for side in sides:
            side.drain()


class _Side:
    """One file: the compounds read but not yet joined, and the next block on its way."""

    def __init__(self, path: Path, column: str, pool: ThreadPoolExecutor, counts: Counter[str]):
        self.path, self.pool, self.counts = path, pool, counts
        self.blocks = _blocks(path, column)
        self.coming = pool.submit(next, self.blocks, None)
        self.frame = polars.DataFrame(schema={"cid": polars.UInt32, column: polars.String})
        self.last = -1

    def fill(self) -> bool:
        """Have at least one compound; `False` at the end of the file."""
        while not self.frame.height:
            block = self.coming.result()
            if block is None:
                return False
            self.coming = self.pool.submit(next, self.blocks, None)
            self.counts[f"records in {self.path.name}"] += block.height
            cids = block["cid"].to_numpy()
            first = int(cids[0])
            if first <= self.last or not (cids[1:] > cids[:-1]).all():
                raise DataError(f"{str(self.path)!r} is not ascending by CID near {first}; the files are joined in one pass")
            self.frame, self.last = block, int(cids[-1])
        return True

    def take(self, limit: int) -> polars.DataFrame:
        """The compounds up to a CID."""
        count = int(self.frame["cid"].search_sorted(limit, side="right"))
        taken, self.frame = self.frame[:count], self.frame[count:]
        return taken

    def drain(self) -> None:
        """Count what the other file has no partner for; a broken rest is noticed too."""
        self.frame = self.frame.clear()
        while self.fill():
            self.frame = self.frame.clear()


def _blocks(path: Path, column: str) -> Iterator[polars.DataFrame]:
    with reading(path) as stream:
        while block := stream.read(BLOCK):
            yield _parse(path, block + stream.readline(BLOCK), column)


def _parse(path: Path, block: bytes, column: str) -> polars.DataFrame:
    try:
        frame = polars.read_csv(
            block, separator="\t", has_header=False, quote_char=None, schema={"cid": polars.UInt32, column: polars.String}
        )
        reason = "a line without CID" if frame["cid"].null_count() else None
    except UNPARSED as error:
        reason = str(error).partition("\n")[0]
    if reason:
        sample = block[:60].decode("utf-8", "replace")
        raise DataError(f"{str(path)!r}: not lines of CID <tab> text near {sample!r} ({reason})")
    return frame


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A plain or gzipped file, unpacked as it is read.

    Raises:
        DataError: it is missing, damaged, or unpacks to far more than such a file can hold.
    """
    try:
        with unpacked(path, COMPRESSIONS.get(path.suffix)) as stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{str(path)!r} does not exist") from None
    except (OSError, *BROKEN) as error:
        raise DataError(f"{str(path)!r} cannot be unpacked: {error}; download it again") from None
