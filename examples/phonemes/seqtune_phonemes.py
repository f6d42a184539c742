"""A pack for one field in one file: spelling to phonemes in ARPAbet, scored by phoneme error rate.

It brings one of each: a source (`seqtune data cmudict`), a task (`--task phonemes:english`), metrics and a verifier.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rapidfuzz.distance import Levenshtein

from seqtune.plugins import Judgement, TaskPlugin, Verdict

TASK = TaskPlugin("word", "phonemes", metrics="phonemes:error-rate", verifier="phonemes:arpabet")
VOWELS = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}
CONSONANTS = {
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z",
    "ZH",
}  # fmt: skip


def cmudict_table(
    file: Annotated[Path, typer.Option("--file", help="A copy of cmudict.dict, https://github.com/cmusphinx/cmudict.")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")],
) -> dict[str, int]:
    """The CMU Pronouncing Dictionary as a table: each word's first pronunciation."""
    words: dict[str, str] = {}
    num_lines = 0
    for line in file.read_text(encoding="latin-1").splitlines():
        entry = line.partition("#")[0].split()
        if len(entry) < 2 or line.startswith(";;;"):
            continue
        num_lines += 1
        if not entry[0].endswith(")"):  # word(2) is a further pronunciation
            words.setdefault(entry[0].lower(), " ".join(entry[1:]))
    with out.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["word", "phonemes"])
        writer.writerows(words.items())
    return {"pronunciations": num_lines, "kept": len(words)}


def error_rate(prediction: str, reference: str) -> float:
    """Phonemes to insert, delete or replace, per phoneme of the reference.

    Example:
        >>> error_rate("K AE1 T", "K AE1 T S")
        0.25
    """
    expected = reference.split()
    return Levenshtein.distance(prediction.split(), expected) / max(1, len(expected))


class PhonemeMetrics:
    """Phoneme error rate, with and without stress, by the number of phonemes."""

    primary = "phoneme_accuracy"
    signatures: Mapping[str, str] = {
        "phoneme_accuracy": "all phonemes right, stress included",
        "phoneme_error_rate": "edits / reference phonemes, mean of words",
        "phoneme_error_rate_unstressed": "the same without stress marks",
    }
    against_reference: Sequence[str] = ("phoneme_accuracy", "phoneme_error_rate")

    def judge(self, inputs: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> Judgement:
        """Judge every word."""
        pairs = list(zip(predictions, references, strict=True))
        return Judgement(
            {
                "phoneme_accuracy": [float(p.split() == r.split()) for p, r in pairs],
                "phoneme_error_rate": [error_rate(p, r) for p, r in pairs],
                "phoneme_error_rate_unstressed": [error_rate(_unstressed(p), _unstressed(r)) for p, r in pairs],
            },
            strata={"phonemes": [str(len(r.split())) if len(r.split()) < 10 else "10+" for r in references]},
        )

    def baselines(self, inputs: Sequence[str], training: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
        """The phonemes of the training word that ends most alike."""
        if not training:
            return {}
        endings = {word[-n:]: sounds for word, sounds in training for n in range(1, len(word) + 1)}
        return {"same ending": [next((endings[w[i:]] for i in range(len(w)) if w[i:] in endings), "") for w in inputs]}


def _unstressed(text: str) -> str:
    return "".join(c for c in text if not c.isdigit())


class ArpabetVerifier:
    """An answer must consist of ARPAbet phonemes, with a stress mark on each vowel and on nothing else."""

    def verify(self, inputs: Sequence[str], candidates: Sequence[str]) -> list[Verdict]:
        """One verdict per candidate."""
        return [self._check(candidate.split()) for candidate in candidates]

    def _check(self, sounds: list[str]) -> Verdict:
        for sound in sounds:
            name = sound.rstrip("012")
            if name not in VOWELS | CONSONANTS:
                return Verdict("unparsed", detail=f"{sound} is no phoneme")
            if (name in VOWELS) != (len(sound) == len(name) + 1):
                return Verdict("mismatch", detail=f"stress on {sound}")
        return Verdict("verified", bool(sounds)) if sounds else Verdict("unparsed", detail="empty")
