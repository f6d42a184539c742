"""Which molecules make a good training table, rule by rule, and the forms that their SMILES take.

`paper`: arXiv 2402.05616. `open`: organic molecules of ordinary size whose name OPSIN reads back to them.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import selfies
from rdkit import Chem
from rdkit.Chem import Mol, rdMolDescriptors

from seqtune.chem import molecules, opsin

Preset = Literal["open", "paper", "none"]
Form = Literal["canonical", "kekule", "given"]
Rule = Callable[[Mol], bool]

OPEN_ELEMENTS = frozenset({1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53})  # H B C N O F Si P S Cl Br I
PAPER_ELEMENTS = frozenset({1, 6, 7, 8, 9, 16, 17, 35})  # H C N O F S Cl Br
UNREADABLE, UNVERIFIED = "SMILES cannot be read", "name not verified by OPSIN"


@dataclass(frozen=True, slots=True)
class Curation:
    """What is kept, and in which form.

    Attributes:
        preset: the rules.
        form: canonical SMILES, canonical with Kekule bonds, or as given.
        num_random: further rows per molecule whose `input_smiles` are random spellings of it.
        selfies: also write the column `selfies` (https://doi.org/10.1088/2632-2153/aba947).
        keys: also write `skeleton` and `scaffold`, to split by.
        verify_names: apply the OPSIN rule of the preset; off where there is no Java.
    """

    preset: Preset = "open"
    form: Form = "canonical"
    num_random: int = 0
    selfies: bool = False
    keys: bool = True
    verify_names: bool = True

    @property
    def reads_structures(self) -> bool:
        """Whether RDKit has anything to do; without, rows are written as they are."""
        return self.preset != "none" or self.form != "given" or self.num_random > 0 or self.selfies or self.keys


@dataclass(frozen=True, slots=True)
class Curated:
    """One row's outcome: the rule that dropped it, or what is written."""

    rule: str | None
    smiles: str = ""
    inputs: tuple[str, ...] = ()
    skeleton: str = ""
    scaffold: str = ""
    selfies: str = ""


def _elements(allowed: frozenset[int]) -> Rule:
    return lambda mol: any(atom.GetAtomicNum() not in allowed for atom in mol.GetAtoms())


def _matches(smarts: str) -> Callable[[Mol], int]:
    pattern = Chem.MolFromSmarts(smarts)
    return lambda mol: len(mol.GetSubstructMatches(pattern))


def _outside(function: Callable[[Mol], float], low: float, high: float = float("inf")) -> Rule:
    return lambda mol: not low <= function(mol) <= high


@cache
def rules(preset: Preset) -> dict[str, Rule]:
    """The preset's rules in the order in which they are applied: name -> is the molecule to be dropped?

    Example:
        >>> [name for name, drops in rules("open").items() if drops(Chem.MolFromSmiles("[13CH4]"))]
        ['isotopes', 'heavy atoms outside 3-50']
    """
    shared: dict[str, Rule] = {
        "several fragments": lambda mol: len(Chem.GetMolFrags(mol)) > 1,
        "isotopes": lambda mol: any(atom.GetIsotope() for atom in mol.GetAtoms()),
    }
    nitro, nitroso, phenyl = map(_matches, ("[N+](=O)[O-]", "[NX2;!+]=[OX1]", "c1ccccc1"))
    presets: dict[Preset, dict[str, Rule]] = {
        "none": {},
        "open": {
            **shared,
            "elements other than H B C N O F Si P S Cl Br I": _elements(OPEN_ELEMENTS),
            "charged": lambda mol: Chem.GetFormalCharge(mol) != 0,
            "heavy atoms outside 3-50": _outside(lambda mol: mol.GetNumHeavyAtoms(), 3, 50),
        },
        "paper": {
            **shared,
            "elements other than H C N O S F Cl Br": _elements(PAPER_ELEMENTS),
            "nitro": lambda mol: nitro(mol) > 0,
            "nitroso": lambda mol: nitroso(mol) > 0,
            "molecular weight outside 150-550": _outside(rdMolDescriptors.CalcExactMolWt, 150, 550),
            "no ring": _outside(rdMolDescriptors.CalcNumRings, 1),
            "fsp3 below 0.3": _outside(rdMolDescriptors.CalcFractionCSP3, 0.3),
            "more than 2 phenyl rings": _outside(phenyl, 0, 2),
            "more than 4 aromatic rings": _outside(rdMolDescriptors.CalcNumAromaticRings, 0, 4),
        },
    }
    return presets[preset]


def curate(curation: Curation, rows: Sequence[tuple[str, str]]) -> list[Curated]:
    """Judge rows of (SMILES, name), the names of those that pass by OPSIN in one batch.

    Example:
        >>> curate(Curation("paper"), [("CCO", "ethanol")])[0].rule
        'molecular weight outside 150-550'
    """
    outcomes = [_judge(curation, smiles) for smiles, _ in rows]
    if curation.preset != "open" or not curation.verify_names:
        return outcomes
    asked = [i for i, outcome in enumerate(outcomes) if outcome.rule is None]
    read = opsin.living().read([rows[i][1] for i in asked])
    for i, back in zip(asked, read, strict=True):
        if not back or not molecules.compare((rows[i][0], back)).structure:
            outcomes[i] = Curated(UNVERIFIED)
    return outcomes


def _judge(curation: Curation, smiles: str) -> Curated:
    mol = molecules.parse(smiles)
    if mol is None or not mol.GetNumAtoms():
        return Curated(UNREADABLE)
    for name, drops in rules(curation.preset).items():
        if drops(mol):
            return Curated(name)
    written = smiles if curation.form == "given" else _write(mol, kekule=curation.form == "kekule")
    inputs = (written, *_random_spellings(mol, curation.num_random, smiles)) if curation.num_random else ()
    return Curated(
        None,
        written,
        inputs,
        (molecules.skeleton(smiles) or "") if curation.keys else "",
        (molecules.scaffold(smiles) or "") if curation.keys else "",
        _selfies(mol) if curation.selfies else "",
    )


def _write(mol: Mol, *, kekule: bool) -> str:
    if not kekule:
        return Chem.MolToSmiles(mol)
    copy = Chem.Mol(mol)
    Chem.Kekulize(copy, clearAromaticFlags=True)
    return Chem.MolToSmiles(copy, kekuleSmiles=True)


def _random_spellings(mol: Mol, number: int, smiles: str) -> list[str]:
    """Different spellings, the same ones for the same SMILES on every machine; fewer where there are no more."""
    generator = random.Random(zlib.crc32(smiles.encode()))  # noqa: S311 - augmentation, not cryptography
    found: dict[str, None] = {}
    for _ in range(4 * number):
        if len(found) == number:
            break
        seed = generator.randrange(2**31)
        found.update(dict.fromkeys(Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)))
    found.pop(Chem.MolToSmiles(mol), None)
    return list(found)


def _selfies(mol: Mol) -> str:
    try:
        return selfies.encoder(Chem.MolToSmiles(mol))
    except selfies.EncoderError:
        return ""
