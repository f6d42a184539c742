"""Chemists' files of molecules -> rows: `.smi` and `.sdf`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem

from seqtune.errors import DataError
from seqtune.records import Example


def smi(path: Path) -> Iterator[Example]:
    """Rows of a SMILES file: `SMILES [blank or tab NAME]` a line; empty lines and `#` comments are passed over.

    Raises:
        DataError: the file is not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also split at U+2028
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        cells = line.split(maxsplit=1)
        if cells and not line.startswith("#"):
            name = cells[1].strip() if len(cells) > 1 else str(number)
            yield Example(name, cells[0], None, {}, str(path), number)


def _title(mol: Chem.Mol) -> str:
    try:
        return mol.GetProp("_Name").strip() if mol.HasProp("_Name") else ""
    except UnicodeDecodeError:
        return ""


def sdf(path: Path) -> Iterator[Example]:
    """Rows of a structure-data file: canonical SMILES, named by the title line; an unreadable record has an empty input."""
    with path.open("rb") as handle:
        for number, mol in enumerate(Chem.ForwardSDMolSupplier(handle), start=1):
            if mol is None:
                yield Example(str(number), "", None, {}, str(path), number)
            else:
                yield Example(_title(mol) or str(number), Chem.MolToSmiles(mol), None, {}, str(path), number)
