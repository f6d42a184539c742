"""What looks wrong with a table before anything is trained on it; `seqtune check` and `seqtune fit` tell it alike.

An error is what makes a training senseless, and `fit` refuses it: an answer that stands in its question, a single answer for
everything, answers that repeat their questions. A warning or a note may be meant.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars

from seqtune.data.near import near_rows
from seqtune.data.splits import subset
from seqtune.data.table import FIELD, batches
from seqtune.errors import DataError, SupervisionError
from seqtune.records import Example
from seqtune.report.notebook import table
from seqtune.tokens.preparation import Prepared
from seqtune.tokens.token_table import BLOCK_ROWS

MOST_READ = 20_000  # rows that are looked at one by one
NGRAM = 3
SUSPICION = 3.0  # nats per character by which the swapped reading must win
LEAKS = 0.95  # share of rows whose answer stands in a column of the question, from which on it is no chance
FEW = 20  # rows: of fewer, nothing is said that takes counting
LONG = 40  # characters from which on it is no chance that many outputs end at the same length
CUT = 0.01  # share of outputs with the greatest length of all, from which on they look cut off,
SPIKE, BELOW = 4.0, 5  # if they are so many times as many as with each of these lengths right below it
# a row's number, or a name that says nothing: UUID, hexadecimal digest
NAMES = re.compile(r"\d+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32,64}", re.IGNORECASE)


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
    found = [*_rejections(prepared), *_senseless(prepared), *_duplicates(train), *_leaks(prepared), *_near(prepared)]
    if not prepared.mixture:  # in which one question has many answers where it asks for a question
        found += [*_given_away(prepared), *_names(train), *_conflicts(train), *_inverted(train)]
    found += [*_cut_off(train), *_unknown(prepared), *_unanswerable(prepared), *_outside(prepared)]
    if not prepared.examples["validation"]:
        found.append(Finding("warning", "no validation rows: the last weights are kept, not the best ones"))
    if not prepared.examples["test"]:
        found.append(Finding("warning", "no test rows: there will be no score on unseen data"))
    order = ("error", "warning", "note")
    return Findings(sorted(found, key=lambda f: order.index(f.level)))


def refuse_errors(found: Sequence[Finding]) -> None:
    """Stop before a senseless training.

    Raises:
        DataError: there is an error among the findings; all of them are named.
    """
    wrong = [finding.text for finding in found if finding.level == "error"]
    if wrong:
        raise DataError("this table cannot be trained on: " + "; ".join(wrong))


def _senseless(prepared: Prepared) -> list[Finding]:
    """Answers that can be had without learning anything."""
    train = prepared.examples["train"]
    outputs, same = Counter[str](), 0
    for frame in batches(train, "input", "output"):
        outputs.update(frame["output"].to_list())
        same += int((frame["input"].str.strip_chars() == frame["output"]).sum())
    if len(train) < 2:
        return []
    if len(outputs) == 1:
        text = f"every training row has the same output, {next(iter(outputs))[:60]!r}; there is nothing to learn"
        return [Finding("error", text)]
    if same == len(train):
        return [Finding("error", "every output repeats its input; the output column (--output) is the input's, or a copy")]
    if same > len(train) / 2:
        return [Finding("warning", f"{same} of {len(train)} outputs repeat their input; copying it would score as much")]
    return []


def _given_away(prepared: Prepared) -> list[Finding]:
    """Columns of the question that hold the answer, or tell it."""
    train, template, found = prepared.examples["train"], prepared.task.rendering, []
    if prepared.task.output in template.source_columns:
        return [Finding("error", f"the template shows the model {{{prepared.task.output}}}, the output, which it is to write")]
    rows = subset(train, MOST_READ, 0)
    for column in sorted(template.source_columns) if len(rows) >= FEW else ():
        cells = polars.concat(list(batches(rows, FIELD + column, "output"))).rename({FIELD + column: "cell"})
        held = cells.select(polars.col("cell").fill_null("").str.contains(polars.col("output"), literal=True).mean()).item()
        told = cells.group_by("cell").agg(polars.col("output").n_unique(), polars.len())
        repeats = told.filter(polars.col("len") > 1)
        tells = len(repeats) and repeats["output"].max() == 1 and repeats["len"].sum() > LEAKS * len(rows)
        if held > LEAKS:
            found.append(
                Finding("error", f"the column {column!r} of the template holds the output in {held:.0%} of the rows: a leak")
            )
        elif tells and cells["output"].n_unique() > 1:
            found.append(
                Finding("warning", f"the column {column!r} of the template tells the output: equal cells have equal outputs")
            )
    return found


def _names(train: Sequence[Example]) -> list[Finding]:
    """Inputs that are names of rows and not what the output is made of."""
    if len(train) < FEW:
        return []
    rows = subset(train, MOST_READ, 0)
    texts = [text.strip() for frame in batches(rows, "input") for text in frame["input"].to_list()]
    if len(set(texts)) < len(texts) or not all(map(NAMES.fullmatch, texts)):
        return []
    if all(text.isdecimal() for text in texts):
        numbers = np.array([int(text[:18]) for text in texts])
        if (np.diff(numbers) <= 0).any():  # numbers in no order may well be what is asked about
            return []
    return [
        Finding("warning", f"the inputs look like names of rows ({texts[0]!r}, {texts[1]!r}); is --input the right column?")
    ]


def _cut_off(train: Sequence[Example]) -> list[Finding]:
    """Outputs that somebody's database or spreadsheet has cut at a length."""
    lengths = np.concatenate(
        [np.zeros(0, np.int64), *(f["output"].str.len_chars().to_numpy() for f in batches(train, "output"))]
    )
    longest = int(lengths.max(initial=0))
    if longest < LONG:
        return []
    *before, count = np.bincount(lengths.astype(np.int64))[longest - BELOW :].tolist()
    # a table that somebody has filtered by length has many at the limit too, but as many right below it
    if count < max(5, CUT * len(lengths), SPIKE * sum(before) / BELOW) or count == len(lengths):
        return []
    text = f"{count} outputs have the same length of {longest} characters, the greatest there is: they look cut off"
    return [Finding("warning", text)]


def _unknown(prepared: Prepared) -> list[Finding]:
    """Rows with inputs that the tokenizer cannot spell; outputs that it cannot are rejected when they are encoded."""
    unknown = prepared.encoder.tokenizer.unk_token_id
    if unknown is None or unknown not in prepared.encoded.used:
        return []
    rows = [i for i, row in enumerate(prepared.encoded) if (row.input_ids == unknown).any()]
    if not rows:
        return []
    first = prepared.examples["train"][rows[0]]
    text = f"{len(rows)} training inputs hold characters that the tokenizer cannot spell, so the model does not see them; first"
    return [Finding("warning", f"{text}: line {first.line}: {first.input[:60]!r}; take a model whose tokenizer works on bytes")]


def _near(prepared: Prepared) -> list[Finding]:
    """Held-out rows whose question is nearly one of training's."""
    found = []
    for side in ("validation", "test"):
        rows = prepared.examples[side]
        near = near_rows(prepared.examples["train"], rows)
        if near:
            whole = near.num_rows == len(rows) and near.num_training == len(prepared.examples["train"])
            compared = "" if whole else f" ({near.num_rows:,} were compared with {near.num_training:,})"
            ours, theirs = near.first
            found.append(
                Finding(
                    "note",
                    f"{near.count} {side} rows nearly repeat the input of a training row{compared}, such as {ours[:40]!r} and "
                    f"{theirs[:40]!r}; they say less about new inputs",
                )
            )
    return found


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
