"""What would be trained on, and what looks wrong with it: the findings behind `seqtune check`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqtune import plugins
from seqtune.data.table import batches
from seqtune.errors import SupervisionError
from seqtune.records import Encoded, Example
from seqtune.report.notebook import table
from seqtune.tokens.encode import Encoder
from seqtune.tokens.preparation import Prepared
from seqtune.tokens.shares import lines
from seqtune.tokens.token_table import BLOCK_ROWS

NUM_SHOWN = 3
MOST_READ = 20_000  # rows that are searched for swapped cells
NGRAM = 3
NUM_BINS = 10
PART_OF_CHARACTER = "\ufffd"  # what bytes are decoded to that make no whole character yet
SUSPICION = 3.0  # nats per character by which the swapped reading must win


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a person should know.

    Attributes:
        level: "error", "warning" or "note".
        text: what, how many, and an example with its line.
    """

    level: str
    text: str


class Findings(list[Finding]):
    """Findings, a row each in a notebook."""

    def _repr_html_(self) -> str:
        return table(["level", "finding"], [[found.level, found.text] for found in self])


def findings(prepared: Prepared) -> Findings:
    """Everything that is odd about the data, worst first."""
    train = prepared.examples["train"]
    found = [*_rejections(prepared), *_duplicates(train), *_leaks(prepared)]
    if not prepared.mixture:  # in which one question has many answers where it asks for a question
        found += [*_conflicts(train), *_inverted(train)]
    found += [*_unanswerable(prepared), *_outside(prepared)]
    if not prepared.examples["validation"]:
        found.append(Finding("warning", "no validation rows: the last weights are kept, not the best ones"))
    if not prepared.examples["test"]:
        found.append(Finding("warning", "no test rows: there will be no score on unseen data"))
    order = ("error", "warning", "note")
    return Findings(sorted(found, key=lambda f: order.index(f.level)))


def _rejections(prepared: Prepared) -> list[Finding]:
    if not prepared.rejected:
        return []
    first = prepared.rejected[0]
    total = len(prepared.rejected)
    return [
        Finding(
            "warning",
            f"{total} of {prepared.num_rows} rows cannot be used; first: {first.file}, line {first.line}: {first.reason}",
        )
    ]


def _unanswerable(prepared: Prepared) -> list[Finding]:
    """Held-out rows that the model cannot read; they stay, and count as wrong answers."""
    found = []
    for side in ("validation", "test"):
        count, first = 0, None
        for example, ids in _sources(prepared, prepared.examples[side]):
            if isinstance(ids, SupervisionError):
                count, first = count + 1, first or f"line {example.line}: {ids}"
        if count:
            found.append(Finding("warning", f"{count} {side} rows cannot be answered and count as wrong; first: {first}"))
    return found


def _outside(prepared: Prepared) -> list[Finding]:
    """Held-out rows whose output is none of the answers that the task has."""
    answers, found = prepared.task.answers, []
    for side in ("validation", "test") if answers else ():
        rows = [e for e in prepared.examples[side] if e.output not in (answers or ())]
        if rows:
            text = f"{len(rows)} {side} rows have an output that is none of the answers, and count as wrong"
            found.append(Finding("warning", f"{text}; first: line {rows[0].line}: {(rows[0].output or '')[:60]!r}"))
    return found


def _sources(prepared: Prepared, rows: Sequence[Example]) -> Iterator[tuple[Example, np.ndarray | SupervisionError]]:
    """Rows as a model reads them, encoded a few at a time."""
    template, remaining = prepared.task.rendering, iter(rows)
    while block := list(itertools.islice(remaining, BLOCK_ROWS)):
        yield from zip(block, prepared.encoder.encode_sources([template.render(e) for e in block]), strict=True)


def _hashes(rows: Sequence[Example], *names: str) -> np.ndarray:
    """A hash of 64 bits of these columns of each row."""
    return np.concatenate([np.zeros(0, np.uint64), *(frame.hash_rows().to_numpy() for frame in batches(rows, *names))])


def _duplicates(train: Sequence[Example]) -> list[Finding]:
    _, firsts, counts = np.unique(_hashes(train, "context", "input", "output"), return_index=True, return_counts=True)
    extra = len(train) - len(counts)
    if not extra:
        return []
    first = firsts[counts == counts.max()].min()
    text, times = train[int(first)].input, counts.max()
    return [Finding("note", f"{extra} training rows repeat another row; {text[:60]!r} stands {times} times")]


def _conflicts(train: Sequence[Example]) -> list[Finding]:
    asked = _hashes(train, "context", "input")
    _, firsts = np.unique(_hashes(train, "context", "input", "output"), return_index=True)  # each pair where it is first met
    questions, counts = np.unique(asked[firsts], return_counts=True)
    several = questions[counts > 1]
    if not len(several):
        return []
    members = np.sort(firsts[np.isin(asked[firsts], several)])
    same = members[asked[members] == asked[members[0]]]
    text = train[int(same[0])].input
    lines = ", ".join(str(train[i].line) for i in same[:5].tolist())
    return [
        Finding(
            "warning",
            f"{len(several)} inputs have different outputs in different rows, such as {text[:60]!r} (lines {lines}); "
            "exact match cannot reach 100% on them",
        )
    ]


def _leaks(prepared: Prepared) -> list[Finding]:
    found = []
    for side, counts in prepared.leakage.items():
        of = f"of {counts['rows']} {side} rows have"
        for kind, level in (("same_pair", "warning"), ("same_input", "warning"), ("same_normalized_input", "note")):
            if counts[kind]:
                what = kind.replace("_", " ")
                found.append(Finding(level, f"{counts[kind]} {of} the {what} as a training row"))
                break
        if counts["same_output"]:
            found.append(Finding("note", f"{counts['same_output']} {of} an output that training shows too"))
    return found


def _inverted(train: Sequence[Example]) -> list[Finding]:
    """Rows whose input reads like the others' outputs and the other way round, by character trigrams."""
    if len(train) < 20:
        return []
    train = train[:: -(-len(train) // MOST_READ)]  # evenly, as a table may be sorted
    inputs, outputs = Counter[str](), Counter[str]()
    for example in train:
        inputs.update(_grams(example.input))
        outputs.update(_grams(example.output or ""))
    suspects = [e for e in train if _swap_gain(e, inputs, outputs) > SUSPICION]
    if not suspects:
        return []
    shown = ", ".join(str(e.line) for e in suspects[:5])
    first = suspects[0]
    return [
        Finding(
            "warning",
            f"{len(suspects)} rows look inverted against the rest (lines {shown}), "
            f"such as {first.input[:40]!r} -> {(first.output or '')[:40]!r}",
        )
    ]


def _grams(text: str) -> list[str]:
    padded = f"^{text}$"
    return [padded[i : i + NGRAM] for i in range(max(1, len(padded) - NGRAM + 1))]


def _swap_gain(example: Example, inputs: Counter[str], outputs: Counter[str]) -> float:
    """Mean log-odds per trigram, over both cells, that the cells belong in each other's column."""
    own_input, own_output = Counter(_grams(example.input)), Counter(_grams(example.output or ""))
    total_in, total_out = inputs.total() + 1, outputs.total() + 1

    def log_odds(grams: Counter[str], here: Counter[str], there: Counter[str], offset: float) -> float:
        # the row's own counts are taken out, so that a rare row does not vouch for itself
        return float(np.mean([np.log((there[g] + 0.5) / (here[g] - n + 0.5)) for g, n in grams.items()])) + offset

    first = log_odds(own_input, inputs, outputs, float(np.log(total_in / total_out)))
    second = log_odds(own_output, outputs, inputs, float(np.log(total_out / total_in)))
    return first + second if min(first, second) > 0 else 0.0


def statistics(prepared: Prepared) -> dict[str, Any]:
    """Lengths, fertility and unknown tokens of the training rows."""
    encoded = prepared.encoded
    characters = words = 0
    for prompt in prepared.prompts:
        text = "".join(prompt.texts)
        characters, words = characters + len(text), words + len(text.split())
    unknown = prepared.encoder.tokenizer.unk_token_id
    num_tokens = int(encoded.lengths.sum(dtype=np.int64))
    return {
        "tokens_per_row": _quantiles(encoded.lengths),
        "loss_tokens_per_row": _quantiles(encoded.num_loss_tokens),
        "tokens_per_character": round(num_tokens / max(1, characters), 4),
        "tokens_per_word": round(num_tokens / max(1, words), 4),
        "unknown_tokens": 0 if unknown is None else sum(int((row.input_ids == unknown).sum()) for row in encoded),
        "vocabulary_used": len(encoded.used),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    names = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: float(np.quantile(values, q)) for name, q in names.items()}


def tokens(row: Encoded, encoder: Encoder) -> list[tuple[str, bool]]:
    """Each token's text and whether it carries loss; texts join to the whole, blanks included.

    Tokens that hold a part of a character each are shown as one.
    """
    pieces = []
    shown = ""
    for index in range(len(row.input_ids)):
        # a token's text depends on what stands before it (word starts, split UTF-8 characters)
        ids = row.input_ids[: index + 1].tolist()
        text = str(encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if text.endswith(PART_OF_CHARACTER) and index + 1 not in (row.loss_start, len(row.input_ids)):
            continue
        pieces.append((text[len(shown) :], index >= row.loss_start))
        shown = text
    return pieces


def neighbours(prepared: Prepared) -> dict[str, Any] | None:
    """How similar held-out rows are to their nearest training row, if the task's pack can tell."""
    pack = prepared.task.pack
    held_out = prepared.examples["test"] or prepared.examples["validation"]
    if pack is None or pack.neighbours is None or not held_out:
        return None
    found = plugins.load(pack.neighbours)(prepared.examples["train"], held_out)
    if not found:
        return None
    counts, edges = np.histogram(found, bins=NUM_BINS, range=(0.0, 1.0))
    return {
        "num_rows": len(found),
        "median": float(np.median(found)),
        "edges": [round(float(e), 2) for e in edges],
        "counts": counts.tolist(),
    }


def report(prepared: Prepared) -> dict[str, Any]:
    """Everything `check` shows, as plain values for `--json`."""
    shown = []
    for row in prepared.encoded[:NUM_SHOWN]:
        shown.append([{"token": text, "loss": loss} for text, loss in tokens(row, prepared.encoder)])
    return {
        "data": prepared.report(),
        "notes": prepared.notes,
        "mixture": lines(prepared.shares) if prepared.mixture else [],
        "statistics": statistics(prepared),
        "findings": [{"level": f.level, "text": f.text} for f in findings(prepared)],
        "neighbours": neighbours(prepared),
        "examples": shown,
    }
