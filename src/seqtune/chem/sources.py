"""SMILES and systematic IUPAC names out of the `chemicals` package (MIT), offline.

The package carries about 73,000 PubChem records in tab-separated files: CID, CAS number, formula, molar
mass, SMILES, InChI, InChIKey, systematic IUPAC name, then synonyms (https://github.com/CalebBell/chemicals).
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import polars

from seqtune.errors import DataError, MissingDependencyError

FILES = ("chemical identifiers pubchem small.tsv", "chemical identifiers pubchem large.tsv")
FIELDS = {"cid": 0, "smiles": 4, "inchikey": 6, "iupac": 7}


def chemicals_table(max_smiles: int | None = None, max_name: int | None = None) -> tuple[polars.DataFrame, dict[str, int]]:
    """The molecules of the `chemicals` package, one row per SMILES and per name.

    Args:
        max_smiles: leave out longer SMILES (characters).
        max_name: leave out longer names (characters).

    Returns:
        Columns `cid`, `smiles`, `iupac`, `inchikey`, `skeleton` (first block of the InChIKey: one value
        for all stereoisomers and isotopologues), and a count per reason for leaving a record out.

    Raises:
        MissingDependencyError: the `chemicals` package is absent.
    """
    folder = _folder()
    counts: Counter[str] = Counter()
    rows: list[tuple[str, ...]] = []
    seen_smiles: set[str] = set()
    seen_names: set[str] = set()
    for name in FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            counts["records"] += 1
            cells = line.split("\t")
            if len(cells) <= max(FIELDS.values()):
                counts["too few fields"] += 1
                continue
            cid, smiles, key, iupac = (cells[i].strip() for i in FIELDS.values())
            reason = (
                "no SMILES, name or InChIKey" if not (smiles and iupac and key)
                else "SMILES too long" if max_smiles and len(smiles) > max_smiles
                else "name too long" if max_name and len(iupac) > max_name
                else "SMILES seen before" if smiles in seen_smiles
                else "name seen before" if iupac in seen_names
                else None
            )  # fmt: skip
            if reason:
                counts[reason] += 1
                continue
            seen_smiles.add(smiles)
            seen_names.add(iupac)
            rows.append((cid, smiles, iupac, key, key.partition("-")[0]))
    counts["kept"] = len(rows)
    if not rows:
        raise DataError(f"no molecule has a SMILES of at most {max_smiles} and a name of at most {max_name} characters")
    columns = ["cid", "smiles", "iupac", "inchikey", "skeleton"]
    return polars.DataFrame(rows, schema=columns, orient="row"), dict(counts)


def _folder() -> Path:
    # find_spec does not import the package, whose import takes seconds
    spec = importlib.util.find_spec("chemicals")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("chemicals", "chem", "the table of molecules")
    return Path(spec.origin).parent / "Identifiers"
