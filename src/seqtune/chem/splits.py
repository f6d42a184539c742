"""Groups that keep a molecule on one side of a split, and how near a held-out molecule is to the training rows.

Groups depend on the molecule alone, so both directions (SMILES -> name and back) of it fall on the same side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from seqtune.chem import baselines, molecules
from seqtune.chem.isolation import Failure, workers
from seqtune.records import Example

PROBE = 20  # rows that tell which column holds the SMILES
MAX_HELD_OUT = 2000  # rows compared with all training rows


def smiles_of(examples: Sequence[Example]) -> list[str]:
    """The texts of whichever column reads as SMILES."""
    columns = ([e.input for e in examples], [e.output or "" for e in examples])
    return max(columns, key=lambda texts: sum(molecules.parse(text) is not None for text in texts[:PROBE]))


def _groups(function: Callable[[str], str | None], examples: Sequence[Example]) -> list[str]:
    texts = smiles_of(examples)
    found = workers().map(function, texts)
    return [text if group is None or isinstance(group, Failure) else group for text, group in zip(texts, found, strict=True)]


def skeletons(examples: Sequence[Example]) -> list[str]:
    """InChIKey first block of each row's largest uncharged fragment; an unreadable SMILES is a group of its own."""
    return _groups(molecules.skeleton, examples)


def scaffolds(examples: Sequence[Example]) -> list[str]:
    """Murcko scaffold of each row; each acyclic skeleton is a group of its own."""
    return _groups(molecules.scaffold, examples)


def neighbours(training: Sequence[Example], held_out: Sequence[Example]) -> list[float]:
    """Tanimoto similarity (Morgan radius 2) of each held-out molecule, at most 2,000 of them, to its nearest training one."""
    if not training or not held_out:
        return []
    found = baselines.nearest(smiles_of(held_out[:MAX_HELD_OUT]), smiles_of(training))
    return [near[1] for near in found if near is not None]
