"""Questions about molecules that RDKit answers; plain functions of texts, fit for worker processes.

None of them raises on any text; what cannot be read gives `None` or the status that says so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from rdkit import Chem, RDLogger
from rdkit.Chem import Mol, rdMolDescriptors
from rdkit.Chem.MolStandardize import rdMolStandardize

RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
# its complaints go to stderr from C++, one or more a molecule
MAX_CHARACTERS = 2000  # of a SMILES; the longest that people put into a name have a few hundred
MAX_ATOMS = 400


@lru_cache(maxsize=4096)
def parse(smiles: str) -> Mol | None:
    """The molecule, `None` if RDKit cannot read or sanitise it.

    Example:
        >>> parse("C1CC") is None
        True
    """
    if not smiles.strip() or len(smiles) > MAX_CHARACTERS:
        return None
    try:
        return Chem.MolFromSmiles(smiles.strip())
    except (ValueError, RuntimeError):
        return None


def canonical(smiles: str) -> str | None:
    """RDKit's canonical isomeric SMILES.

    Example:
        >>> canonical("OCC"), canonical("C1CC")
        ('CCO', None)
    """
    mol = parse(smiles)
    return None if mol is None else Chem.MolToSmiles(mol)


def parent(mol: Mol) -> Mol:
    """The largest fragment (by heavy atoms), uncharged where protons can do it."""
    fragments = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=True)
    largest = max(fragments, key=lambda f: (f.GetNumHeavyAtoms(), rdMolDescriptors.CalcExactMolWt(f), Chem.MolToSmiles(f)))
    return rdMolStandardize.Uncharger().uncharge(largest)


def skeleton(smiles: str) -> str | None:
    """First block of the InChIKey of the largest uncharged fragment: one value for stereoisomers, isotopologues and salts.

    Example:
        >>> skeleton("C[C@H](N)C(=O)O") == skeleton("[Na+].CC(N)C(=O)[O-]")
        True
    """
    mol = parse(smiles)
    if mol is None or not mol.GetNumAtoms():
        return None
    return Chem.MolToInchiKey(parent(mol)).partition("-")[0] or None


def scaffold(smiles: str) -> str | None:
    """Bemis-Murcko scaffold of the largest uncharged fragment; an acyclic molecule is a scaffold of its own.

    Source: Bemis & Murcko 1996, https://doi.org/10.1021/jm9602928.

    Example:
        >>> scaffold("CCc1ccccc1C"), scaffold("CCO")
        ('c1ccccc1', 'acyclic LFQSCWFLJHTTHZ')
    """
    mol = parse(smiles)
    if mol is None or not mol.GetNumAtoms():
        return None
    core = Chem.MolToSmiles(Chem.MurckoDecompose(parent(mol)), isomericSmiles=False)
    return core or f"acyclic {skeleton(smiles)}"


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two structures are; each level includes the ones before it.

    Attributes:
        fixed_hydrogens: the same tautomer too (FixedH InChI).
        structure: the same with all stereochemistry and isotopes (standard InChI).
        skeleton: the same connections (first block of the InChIKey).
        readable: both could be read.
    """

    fixed_hydrogens: bool = False
    structure: bool = False
    skeleton: bool = False
    readable: bool = True


def compare(pair: tuple[str, str]) -> Likeness:
    """Compare two SMILES: canonical SMILES first, InChI only where they differ in spite of the same heavy atoms.

    Example:
        >>> compare(("OCC", "CCO")) == Likeness(True, True, True)
        True
        >>> compare(("C[C@H](N)C(=O)O", "CC(N)C(=O)O")) == Likeness(skeleton=True)
        True
        >>> compare(("Oc1ccccn1", "O=c1cccc[nH]1")) == Likeness(structure=True, skeleton=True)
        True
    """
    ours, theirs = (parse(smiles) for smiles in pair)
    if ours is None or theirs is None:
        return Likeness(readable=False)
    if Chem.MolToSmiles(ours) == Chem.MolToSmiles(theirs):
        return Likeness(True, True, True)
    if _heavy_atoms(ours) != _heavy_atoms(theirs):
        return Likeness()
    first, second = Chem.MolToInchi(ours), Chem.MolToInchi(theirs)
    if not first or not second:
        return Likeness()
    keys = [Chem.InchiToInchiKey(inchi).partition("-")[0] for inchi in (first, second)]
    if first != second:
        return Likeness(skeleton=keys[0] == keys[1])
    fixed = [Chem.MolToInchi(mol, options="/FixedH") for mol in (ours, theirs)]
    return Likeness(fixed[0] == fixed[1], True, True)


def _heavy_atoms(mol: Mol) -> Counter[int]:
    return Counter(atom.GetAtomicNum() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1)


def describe(smiles: str) -> dict[str, str]:
    """The bands that scores are broken down by: heavy atoms, rings, stereocentres, charge, isotopes, salts.

    Example:
        >>> describe("C[C@H](N)C(=O)O")["stereocentres"], describe("[Na+].[Cl-]")["fragments"]
        ('1', 'several')
    """
    mol = parse(smiles)
    if mol is None:
        return dict.fromkeys(("heavy atoms", "rings", "stereocentres", "charge", "isotopes", "fragments"), "unreadable")
    centres = len(Chem.FindMolChiralCenters(mol, includeUnassigned=True, useLegacyImplementation=False))
    return {
        "heavy atoms": _band(mol.GetNumHeavyAtoms(), (10, 20, 30, 50)),
        "rings": _band(rdMolDescriptors.CalcNumRings(mol), (0, 1, 2, 3)),
        "stereocentres": _band(centres, (0, 1, 3)),
        "charge": "charged atoms" if any(a.GetFormalCharge() for a in mol.GetAtoms()) else "none",
        "isotopes": "labelled" if any(a.GetIsotope() for a in mol.GetAtoms()) else "none",
        "fragments": "several" if len(Chem.GetMolFrags(mol)) > 1 else "one",
    }


def _band(value: int, edges: tuple[int, ...]) -> str:
    low = 0
    for edge in edges:
        if value <= edge:
            return str(edge) if low == edge else f"{low}-{edge}"
        low = edge + 1
    return f"{low}+"
