"""Scores of structures instead of texts: does a predicted name mean the molecule, is a predicted SMILES the molecule?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import rdkit
from rdkit import Chem, DataStructs
from rdkit.Chem import MACCSkeys, rdFingerprintGenerator

from seqtune.chem import baselines, molecules, opsin
from seqtune.chem.isolation import Failure, workers
from seqtune.chem.molecules import Likeness
from seqtune.plugins import Judgement, Verdict
from seqtune.progress import console

RDKIT = f"rdkit:{rdkit.__version__}"
STATUSES = ("verified", "skeleton_only", "mismatch", "unparsed", "not_checked")
MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
RDK = rdFingerprintGenerator.GetRDKitFPGenerator(fpSize=2048)


def read_names(names: Sequence[str]) -> list[str] | None:
    """Names -> SMILES by OPSIN; `None`, with a word on stderr, without Java."""
    try:
        return opsin.living().read(names)
    except opsin.JavaMissingError as error:
        console().print(f"not checked: {error}", style="yellow", markup=False)
        return None


def compare_all(pairs: Sequence[tuple[str, str]]) -> list[Likeness | Failure]:
    """Compare pairs of SMILES in worker processes, each different pair once."""
    different = list(dict.fromkeys(pairs))
    found = dict(zip(different, workers().map(molecules.compare, different), strict=True))
    return [found[pair] for pair in pairs]


def verdicts(structures: Sequence[str], names: Sequence[str]) -> list[Verdict]:
    """Does each name mean the structure beside it?

    `not_checked` stands for a missing Java, an input that is no molecule, and a comparison that took too long.

    Args:
        structures: SMILES.
        names: names, of any kind of quality.
    """
    back = read_names(names)
    if back is None:
        return [Verdict("not_checked") for _ in names]
    return [
        Verdict(status := _status(likeness, smiles, structure), status == "verified", smiles)
        for likeness, smiles, structure in zip(
            compare_all(list(zip(structures, back, strict=True))), back, structures, strict=True
        )
    ]


def _status(likeness: Likeness | Failure, back: str, structure: str) -> str:
    if not back:
        return "unparsed"
    if isinstance(likeness, Failure) or (not likeness.readable and molecules.parse(structure) is None):
        return "not_checked"
    if not likeness.readable:
        return "unparsed"
    return "verified" if likeness.structure else "skeleton_only" if likeness.skeleton else "mismatch"


class NameVerifier:
    """SMILES -> name: OPSIN reads each candidate name back, and the structure must be the one asked for."""

    def verify(self, inputs: Sequence[str], candidates: Sequence[str]) -> list[Verdict]:
        """One verdict per pair."""
        return verdicts(inputs, candidates)


class StructureVerifier:
    """Name -> SMILES: the candidate must be the structure that OPSIN reads out of the input name.

    What OPSIN cannot read is `not_checked`: it says nothing about the candidate.
    """

    def verify(self, inputs: Sequence[str], candidates: Sequence[str]) -> list[Verdict]:
        """One verdict per pair."""
        read = read_names(inputs)
        if read is None:
            return [Verdict("not_checked") for _ in inputs]
        found = []
        likenesses = compare_all(list(zip(candidates, read, strict=True)))
        for likeness, candidate, expected in zip(likenesses, candidates, read, strict=True):
            if not expected:
                found.append(Verdict("not_checked"))
            elif molecules.parse(candidate) is None:
                found.append(Verdict("unparsed", detail=expected))
            else:
                status = _status(likeness, expected, candidate)
                found.append(Verdict(status, status == "verified", expected))
        return found


def _strata(smiles: Sequence[str]) -> Mapping[str, Sequence[str]]:
    rows = [
        dict.fromkeys(molecules.describe(""), "unreadable") if isinstance(row, Failure) else row
        for row in workers().map(molecules.describe, smiles)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


class NameMetrics:
    """SMILES -> name: read each name back and compare the structures, on three levels, over all items."""

    primary = "structure_accuracy"
    against_reference: Sequence[str] = ()

    @property
    def signatures(self) -> Mapping[str, str]:
        """How each value is computed."""
        base = f"name read by opsin:{opsin.version()}|all items, unread names count as wrong|{RDKIT}"
        return {
            "structure_accuracy": f"same standard InChI (stereo, isotopes)|{base}",
            "skeleton_accuracy": f"same InChIKey first block|{base}",
            "fixed_hydrogen_accuracy": f"same FixedH InChI (tautomer too)|{base}",
        }

    def judge(self, inputs: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> Judgement:
        """Judge every item; without Java no structure score is given."""
        back = read_names(predictions)
        if back is None:
            return Judgement({}, {"structure": ["not_checked"] * len(inputs)}, _strata(inputs))
        likenesses = compare_all(list(zip(inputs, back, strict=True)))
        checked = [x if isinstance(x, Likeness) else Likeness(readable=False) for x in likenesses]
        statuses = [_status(*row) for row in zip(likenesses, back, inputs, strict=True)]
        return Judgement(
            {
                "structure_accuracy": [float(x.structure) for x in checked],
                "skeleton_accuracy": [float(x.skeleton) for x in checked],
                "fixed_hydrogen_accuracy": [float(x.fixed_hydrogens) for x in checked],
            },
            {"structure": statuses, "read_back": back},
            _strata(inputs),
        )

    def baselines(self, inputs: Sequence[str], training: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
        """Openclatura's name, and the name of the nearest training molecule."""
        found = {f"openclatura {version('openclatura')}": baselines.openclatura_names(inputs)}
        if training:
            found["nearest training molecule"] = baselines.nearest_answers(inputs, training)
        return found


class StructureMetrics:
    """Name -> SMILES: validity, identity on several levels, and fingerprint similarity."""

    primary = "structure_accuracy"
    against_reference: Sequence[str] = ("canonical_match", "structure_accuracy")

    @property
    def signatures(self) -> Mapping[str, str]:
        """How each value is computed."""
        kinds = {"morgan": "Morgan radius 2, 2,048 bits", "maccs": "MACCS keys", "rdk": "RDKit topological, 2,048 bits"}
        found = {
            "validity": f"read and sanitised|{RDKIT}",
            "canonical_match": f"same canonical isomeric SMILES|all items|{RDKIT}",
            "structure_accuracy": f"same InChIKey (standard InChI)|all items|{RDKIT}",
            "skeleton_accuracy": f"same InChIKey first block|all items|{RDKIT}",
        }
        for key, text in kinds.items():
            found[f"{key}_tanimoto"] = f"{text}|all items, invalid = 0|{RDKIT}"
            found[f"{key}_tanimoto_valid"] = f"{text}|valid predictions only|{RDKIT}"
        return found

    def judge(self, inputs: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> Judgement:
        """Judge every item."""
        pairs = list(zip(predictions, references, strict=True))
        likenesses = [x if isinstance(x, Likeness) else Likeness(readable=False) for x in compare_all(pairs)]
        similar = [None if isinstance(x, Failure) else x for x in workers().map(similarities, pairs)]
        valid = [x is not None for x in similar]
        values: dict[str, list[float | None]] = {
            "validity": [float(v) for v in valid],
            "canonical_match": [float(x is not None and x["canonical"]) for x in similar],
            "structure_accuracy": [float(x.structure) for x in likenesses],
            "skeleton_accuracy": [float(x.skeleton) for x in likenesses],
        }
        for key in ("morgan", "maccs", "rdk"):
            values[f"{key}_tanimoto"] = [0.0 if x is None else x[key] for x in similar]
            values[f"{key}_tanimoto_valid"] = [None if x is None else x[key] for x in similar]
        statuses = [
            "invalid" if not ok else "verified" if x.structure else "skeleton_only" if x.skeleton else "mismatch"
            for ok, x in zip(valid, likenesses, strict=True)
        ]
        return Judgement(values, {"structure": statuses}, _strata(references))

    def baselines(self, inputs: Sequence[str], training: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
        """OPSIN's reading of the name, and the structure of the training name most alike."""
        found: dict[str, Sequence[str]] = {}
        read = read_names(inputs)
        if read is not None:
            found[f"OPSIN {opsin.version()}"] = read
        if training:
            found["most similar training name"] = baselines.most_similar_answers(inputs, training)
        return found


def similarities(pair: tuple[str, str]) -> dict[str, Any] | None:
    """Tanimoto similarities of a predicted and a reference SMILES, `None` if the prediction is invalid.

    Example:
        >>> similarities(("OCC", "CCO"))
        {'canonical': True, 'morgan': 1.0, 'maccs': 1.0, 'rdk': 1.0}
    """
    ours, theirs = (molecules.parse(smiles) for smiles in pair)
    if ours is None:
        return None
    if theirs is None:
        return {"canonical": False, "morgan": 0.0, "maccs": 0.0, "rdk": 0.0}
    tanimoto = DataStructs.TanimotoSimilarity
    return {
        "canonical": Chem.MolToSmiles(ours) == Chem.MolToSmiles(theirs),
        "morgan": tanimoto(MORGAN.GetFingerprint(ours), MORGAN.GetFingerprint(theirs)),
        "maccs": tanimoto(MACCSkeys.GenMACCSKeys(ours), MACCSkeys.GenMACCSKeys(theirs)),  # type: ignore[attr-defined]
        "rdk": tanimoto(RDK.GetFingerprint(ours), RDK.GetFingerprint(theirs)),
    }
