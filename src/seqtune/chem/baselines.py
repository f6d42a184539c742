"""What other tools answer to the same questions, to be printed beside a model's score.

openclatura names structures by rules, OPSIN reads names by rules (`seqtune.chem.opsin`), and the nearest training
molecule's answer shows how far looking things up would go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openclatura
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from rdkit import DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.DataStructs import ExplicitBitVect

from seqtune.chem import molecules
from seqtune.chem.isolation import Failure, workers

MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
ROWS = 64  # inputs compared with all training rows at once


def openclatura_name(smiles: str) -> str:
    """The name that openclatura gives, "" for none."""
    if molecules.parse(smiles) is None:
        return ""
    try:
        return openclatura.name_smiles(smiles)
    except Exception:  # a tool under test; whatever goes wrong in it is an answer it does not have
        return ""


def openclatura_names(inputs: Sequence[str]) -> list[str]:
    """Openclatura's name for each SMILES."""
    return ["" if isinstance(name, Failure) else name for name in workers().map(openclatura_name, inputs, piece=16)]


def fingerprint(smiles: str) -> ExplicitBitVect | None:
    """Morgan fingerprint of radius 2 and 1,024 bits."""
    mol = molecules.parse(smiles)
    return None if mol is None else MORGAN.GetFingerprint(mol)


def fingerprints(smiles: Sequence[str]) -> list[ExplicitBitVect | None]:
    """A fingerprint per SMILES, `None` for what cannot be read."""
    return [None if isinstance(found, Failure) else found for found in workers().map(fingerprint, smiles)]


def nearest(inputs: Sequence[str], training: Sequence[str]) -> list[tuple[int, float] | None]:
    """For each SMILES the position and Tanimoto similarity of the nearest training molecule; `None` if unreadable.

    Example:
        >>> nearest(["OCC"], ["c1ccccc1", "CCO"])
        [(1, 1.0)]
    """
    prints = fingerprints([*training, *inputs])
    known = [(i, found) for i, found in enumerate(prints[: len(training)]) if found is not None]
    if not known:
        return [None] * len(inputs)
    rows = [found for _, found in known]
    answers: list[tuple[int, float] | None] = []
    for found in prints[len(training) :]:
        if found is None:
            answers.append(None)
            continue
        alike = DataStructs.BulkTanimotoSimilarity(found, rows)
        best = int(np.argmax(alike))
        answers.append((known[best][0], float(alike[best])))
    return answers


def nearest_answers(inputs: Sequence[str], training: Sequence[tuple[str, str]]) -> list[str]:
    """The answer of the nearest training molecule (Morgan, Tanimoto)."""
    found = nearest(inputs, [smiles for smiles, _ in training])
    return ["" if near is None else training[near[0]][1] for near in found]


def most_similar_answers(inputs: Sequence[str], training: Sequence[tuple[str, str]]) -> list[str]:
    """The answer of the training row whose input text is most alike (Levenshtein)."""
    texts = [text for text, _ in training]
    answers = []
    for start in range(0, len(inputs), ROWS):
        alike = cdist(
            inputs[start : start + ROWS], texts, scorer=Levenshtein.normalized_similarity, dtype=np.float32, workers=-1
        )
        answers += [training[int(i)][1] for i in alike.argmax(axis=1)]
    return answers
