"""What is odd about an input, said before a model answers it: each oddity is a status, none is passed over."""

from __future__ import annotations

from collections.abc import Sequence

from seqtune.chem import molecules, opsin
from seqtune.chem.isolation import Failure, workers
from seqtune.plugins import Inspection


def inspect_smiles(smiles: str) -> Inspection:
    """Status of one SMILES: `reaction`, `too_large`, `invalid_smiles`, `r_group` are refused, `mixture` is answered.

    Example:
        >>> inspect_smiles("CCO>>CC=O").status, inspect_smiles("C1CC").status, inspect_smiles("*CC").status
        ('reaction', 'invalid_smiles', 'r_group')
        >>> inspect_smiles("[Na+].[Cl-]")
        Inspection(text='[Na+].[Cl-]', status='mixture', refused=False)
    """
    text = smiles.strip()
    if ">" in text:
        return Inspection(text, "reaction", refused=True)
    if len(text) > molecules.MAX_CHARACTERS:
        return Inspection(text, "too_large", refused=True)
    mol = molecules.parse(text)
    if mol is None or not mol.GetNumAtoms():
        return Inspection(text, "invalid_smiles", refused=True)
    if mol.GetNumHeavyAtoms() > molecules.MAX_ATOMS:
        return Inspection(text, "too_large", refused=True)
    if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
        return Inspection(text, "r_group", refused=True)
    return Inspection(text, "mixture" if "." in text else "")


def smiles(inputs: Sequence[str]) -> list[Inspection]:
    """Inspect SMILES, in worker processes; one that hangs or crashes RDKit is refused as `timeout` or `crash`."""
    found = workers().map(inspect_smiles, inputs)
    return [
        Inspection(text, outcome.reason, refused=True) if isinstance(outcome, Failure) else outcome
        for text, outcome in zip(inputs, found, strict=True)
    ]


def names(inputs: Sequence[str]) -> list[Inspection]:
    """Inspect names: typographic dashes and primes are made plain and said so; other symbols are passed on and said so.

    Example:
        >>> names(["propan–2–ol"])
        [Inspection(text='propan-2-ol', status='plain_dashes', refused=False)]
    """
    return [_inspect_name(name) for name in inputs]


def _inspect_name(name: str) -> Inspection:
    text = opsin.plain(name)
    if len(text) > opsin.MAX_CHARACTERS:
        return Inspection(text, "too_large", refused=True)
    if not text.isascii():
        return Inspection(text, "unusual_symbols")
    return Inspection(text, "" if name.isascii() else "plain_dashes")
