"""PubChem's SDF files -> (CID, SMILES, name) frames in any of its naming styles, streamed as text: no molecule is built.

Source: the data fields of https://ftp.ncbi.nlm.nih.gov/pubchem/Compound/CURRENT-Full/SDF/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import polars

from seqtune.chem.pubchem import reading
from seqtune.errors import DataError

Style = Literal["preferred", "systematic", "traditional"]
STYLES = {
    "preferred": "PUBCHEM_IUPAC_NAME",
    "systematic": "PUBCHEM_IUPAC_SYSTEMATIC_NAME",
    "traditional": "PUBCHEM_IUPAC_TRADITIONAL_NAME",
}
SMILES_FIELDS = ("PUBCHEM_SMILES", "PUBCHEM_OPENEYE_ISO_SMILES")  # since 2024, and before
CID = "PUBCHEM_COMPOUND_CID"
LARGEST_CID = 2**32 - 1
LINE = 2**20  # bytes; the longest names have some thousand
ROWS = 50_000


def frames(paths: Sequence[Path], style: Style, counts: Counter[str]) -> Iterator[polars.DataFrame]:
    """Records with a SMILES and a name of the style, columns `cid`, `smiles`, `iupac`.

    Args:
        paths: .sdf or .sdf.gz.
        style: which of PubChem's names.
        counts: filled; records per file, and records that lack a field.

    Raises:
        DataError: a file is missing or broken.
    """
    rows: list[tuple[int, str, str]] = []
    for path in paths:
        with reading(path) as stream:
            for record in _records(stream, path):
                counts[f"records in {path.name}"] += 1
                smiles = next((record[f] for f in SMILES_FIELDS if f in record), "")
                name, cid = record.get(STYLES[style], ""), record.get(CID, "")
                if not (smiles and name and _is_cid(cid)):
                    counts[f"no SMILES or no {style} name"] += 1
                    continue
                rows.append((int(cid), smiles, name))
                if len(rows) == ROWS:
                    yield _frame(rows)
                    rows = []
    if rows:
        yield _frame(rows)


def _frame(rows: list[tuple[int, str, str]]) -> polars.DataFrame:
    return polars.DataFrame(rows, schema={"cid": polars.UInt32, "smiles": polars.String, "iupac": polars.String}, orient="row")


def _is_cid(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_CID)) and int(text) <= LARGEST_CID


def _records(stream: BinaryIO, path: Path) -> Iterator[dict[str, str]]:
    """The data fields of each record that are needed: `> <FIELD>`, then its value on the next line, up to `$$$$`."""
    needed = {*STYLES.values(), *SMILES_FIELDS, CID}
    record: dict[str, str] = {}
    field = ""
    while line := stream.readline(LINE + 1):
        if len(line) > LINE:
            raise DataError(f"{str(path)!r}: a line has more than {LINE:,} bytes, so it is no structure-data file")
        if field:
            if field in needed:
                record[field] = line.decode("utf-8", "replace").strip()
            field = ""
        elif line.startswith(b">"):
            field = line.partition(b"<")[2].partition(b">")[0].decode("utf-8", "replace")
        elif line.startswith(b"$$$$"):
            yield record
            record = {}
