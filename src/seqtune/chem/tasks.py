"""The pack's tasks, as the entry points name them; nothing heavy is imported here."""

from __future__ import annotations

from typing import Any

from seqtune.plugins import TaskPlugin

_READERS = {".smi": "seqtune.chem.files:smi", ".smiles": "seqtune.chem.files:smi", ".sdf": "seqtune.chem.files:sdf"}
_KEYS = {"skeleton": "seqtune.chem.splits:skeletons", "scaffold": "seqtune.chem.splits:scaffolds"}
_SHARED: dict[str, Any] = {
    "draw": "seqtune.chem.draw:grid",
    "picture": "seqtune.chem.draw:picture",
    "keys": _KEYS,
    "neighbours": "seqtune.chem.splits:neighbours",
}

SMILES_TO_IUPAC = TaskPlugin(
    "smiles", "iupac", metrics="chem:names", verifier="chem:names", inspect="seqtune.chem.inspection:smiles", readers=_READERS,
    **_SHARED,
)  # fmt: skip
IUPAC_TO_SMILES = TaskPlugin(
    "iupac", "smiles", metrics="chem:structures", verifier="chem:structures", inspect="seqtune.chem.inspection:names",
    **_SHARED,
)  # fmt: skip
