"""Config -> everything a training reads: rows read, dealt, rendered, encoded, and an account of what was dropped.

`check` and `fit` both go through here, so what is shown is what is trained on.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars

from seqtune import plugins, progress, runs
from seqtune.config import Config, load_config
from seqtune.data import kept
from seqtune.data.asking import MixedTask
from seqtune.data.files import open_table
from seqtune.data.mixture import mixed_sides, open_mixture
from seqtune.data.sources import check_rejected_share, read_examples, said_of
from seqtune.data.splits import leakage, read_sides, subset
from seqtune.data.table import Rows, Table, batches, read_context, take
from seqtune.data.tasks import Task
from seqtune.data.templates import Prompts, inverted_rows
from seqtune.errors import ConfigError, ModelError, VocabularyError
from seqtune.models.loading import SMALL, num_parameters
from seqtune.models.vocabulary import Vocabulary
from seqtune.records import Example, Prompt, Rejected
from seqtune.sections import DataConfig
from seqtune.tokens.encode import Encoder, make_encoder
from seqtune.tokens.shares import Share, shares
from seqtune.tokens.token_table import TokenTable, encode_table

# measured in bench/LOG.md: pieces pay where rows become far shorter, and not on tables so small that they are learnt by heart
ADAPT_PIECES, ADAPT_WORTH, ADAPT_ROWS = 1024, 0.6, 5000
MOST_ADAPT_ROWS = 100_000  # frequent pieces of so many rows are those of the table
MOST_ANSWERS = 1000  # all of them are scored for every input
FEW_ANSWERS, ROWS_AN_ANSWER = 50, 10  # so few outputs, each in so many rows on average, look like classes
NUM_COUNTED = 5000  # rows whose tokens tell how much shorter a vocabulary makes them
NUM_COMPARED = 1000  # rows on which the trimmed tokenizer is compared with the whole one


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data ready to train on.

    Attributes:
        task: with the decoding limit learnt from the targets.
        vocabulary: what the model is trained in.
        encoder: of that vocabulary.
        examples: rows by split; training rows that cannot be encoded are gone, held-out rows are all there.
        prompts: training rows, rendered when they are asked for.
        encoded: encoded training rows, parallel to `prompts` and `examples["train"]`.
        rejected: rows that cannot be used.
        left_out: rows left out by settings, by reason.
        leakage: held-out rows that training has seen.
        fingerprint: changes with the rows, the template and the tokenizer.
        num_rows: rows read, the rejected ones included.
        notes: what was decided along the way, for people.
        mixture: the tasks that the rows are prompts of; none for an ordinary table.
    """

    task: Task
    vocabulary: Vocabulary
    encoder: Encoder
    examples: dict[str, Table]
    prompts: Prompts
    encoded: TokenTable
    rejected: list[Rejected]
    left_out: dict[str, int]
    leakage: dict[str, dict[str, int]]
    fingerprint: str
    num_rows: int
    notes: list[str]
    mixture: Sequence[MixedTask] = ()

    @property
    def shares(self) -> list[Share]:
        """Of a mixture, each task's share as asked and as it came out."""
        return shares(self.mixture, self.examples["train"], self.encoded)

    def report(self) -> dict[str, Any]:
        """The content of `data.json`."""
        return {
            "fingerprint": self.fingerprint,
            "num_rows": self.num_rows,
            "splits": {side: len(rows) for side, rows in self.examples.items()},
            "num_inverted": int(self.prompts.inverted.sum()),
            "num_tokens": int(self.encoded.lengths.sum()),
            "num_loss_tokens": int(self.encoded.num_loss_tokens.sum()),
            "max_tokens": int(self.encoded.lengths.max()),
            "num_new_tokens": len(self.vocabulary.added),
            "left_out": self.left_out,
            "rejected": {"total": len(self.rejected), "by_reason": _by_reason(self.rejected)},
            "leakage": self.leakage,
        } | ({"mixture": [dataclasses.asdict(share) for share in self.shares]} if self.mixture else {})


def _by_reason(rejected: list[Rejected]) -> dict[str, int]:
    """Counts by reason; reasons that differ in numbers and in what follows a colon are counted under the first of them."""
    first: dict[str, str] = {}
    counts = Counter(first.setdefault(re.sub(r"\d+", "", r.reason).split(":")[0], r.reason) for r in rejected)
    return dict(counts.most_common())


def prepare(config: Config) -> Prepared:
    """Read, deal, render and encode.

    Only training rows can be rejected for what they are encoded to. A held-out row that the model cannot answer stays, and
    counts as a wrong answer.

    Raises:
        DataError: the data cannot be read, or too much of it cannot be used.
        ConfigError: no data is named, or the template does not fit the table.
    """
    if not (config.data.path or config.mixture):
        raise ConfigError(
            "data.path is not set: name a table, for instance --data pairs.csv, or a mixture of them: --mixture m.yaml"
        )
    base = make_encoder(config)
    task = Task.from_config(config)
    rejected: list[Rejected] = []
    mixed = open_mixture(config.mixture, rejected) if config.mixture else []
    dealt = mixed_sides(mixed, config, rejected) if mixed else read_splits(config, rejected)
    num_rows = sum(map(len, dealt.values())) + len(rejected)
    left_out = _leave_out(dealt, config.data)
    key = _key(config, dealt)
    train = subset(dealt["train"], config.data.num_examples, config.data.split.seed)
    task = _with_answers(task, config, train)
    rendered = _render(config, task, dealt | {"train": train})

    vocabulary, pieces_note = _with_pieces(config, Vocabulary(base.tokenizer, base.vocab_size), train, key)
    encoded, errors = encode_table(base.with_vocabulary(vocabulary), rendered, key)
    if errors:
        bad = np.array(list(errors))
        rejected += [Rejected(e.file, e.line, reason) for e, reason in zip(take(train, bad), errors.values(), strict=True)]
        good = np.delete(np.arange(len(train), dtype=np.int32), bad)
        train, rendered = train.take(good), rendered.take(good)
    check_rejected_share(rejected, num_rows, config.data.max_rejected)
    if not encoded:
        raise ConfigError("no training row is left after encoding; see model.max_length and data.split")
    vocabulary, note = _trimmed(config, vocabulary, encoded, rendered)
    if vocabulary.kept is not None:
        encoded = encoded.renumbered(vocabulary.kept)

    examples = dealt | {"train": train}
    limit = int(int(encoded.num_loss_tokens.max()) * 1.25) + 8
    group = config.data.split.key if config.data.split.method == "grouped" else None
    known = key and kept.key_of(key, encoded.digest, list(errors), group)
    notes = [*_notes(config, base), *([] if mixed else _answers_note(task, train)), *pieces_note, *note]
    return Prepared(
        task=dataclasses.replace(task, max_new_tokens=limit), vocabulary=vocabulary, encoder=base.with_vocabulary(vocabulary),
        examples=examples, prompts=rendered, encoded=encoded, rejected=rejected, left_out=left_out,
        leakage=kept.fact(known and f"{known}-leakage", lambda: leakage(examples, group)),
        fingerprint=kept.fact(known and f"{known}-fingerprint", lambda: _fingerprint(encoded, examples)),
        num_rows=num_rows, notes=notes, mixture=mixed,
    )  # fmt: skip


def _with_answers(task: Task, config: Config, train: Sequence[Example]) -> Task:
    """The task with the training rows' outputs as the only answers, where the settings say so.

    Raises:
        ConfigError: these are too many for a set of answers, or only one.
    """
    if config.format.answers != "training":
        return task
    answers = sorted(_outputs(train, len(train)) - {""})
    if not 2 <= len(answers) <= MOST_ANSWERS:
        raise ConfigError(
            f"format.answers = 'training': the training rows have {len(answers):,} different outputs; a set of answers has 2 "
            f"to {MOST_ANSWERS:,}; leave it out for free text, or list the answers"
        )
    return dataclasses.replace(task, answers=tuple(answers))


def _answers_note(task: Task, train: Sequence[Example]) -> list[str]:
    """How many answers there are to choose among, or that there are few enough to choose among them."""
    if task.answers:
        return [f"answers: the likeliest of {len(task.answers)} ({_listed(task.answers)})"]
    outputs = sorted(_outputs(train, FEW_ANSWERS))
    if not 2 <= len(outputs) <= FEW_ANSWERS or len(outputs) * ROWS_AN_ANSWER > len(train):
        return []
    return [
        f"the output has {len(outputs)} different values ({_listed(outputs)}): with --set format.answers=training the answer "
        "is always one of them, with its probability"
    ]


def _listed(answers: Sequence[str]) -> str:
    return ", ".join(repr(a[:20]) for a in answers[:5]) + (", ..." if len(answers) > 5 else "")


def _outputs(train: Sequence[Example], most: int) -> set[str]:
    """The different outputs, or some of them, more than `most`, if there are more."""
    found: set[str] = set()
    for frame in batches(train, "output"):
        found.update(frame["output"].fill_null("").unique().to_list())
        if len(found) > most:
            break
    return found


def _key(config: Config, dealt: Mapping[str, Table]) -> str | None:
    """A hash of all rows, how they are dealt and what prompts are made of them; `None` if not all of them are kept."""
    if any(table.key is None for table in dealt.values()):
        return None
    rows = [kept.rows_key(table) for table in dealt.values()]
    return kept.key_of(rows, config.data.num_examples, config.data.split.seed, config.train.seed, config.format)


def _notes(config: Config, encoder: Encoder) -> list[str]:
    """What was recognised in the table, and what a chat's answers end with."""
    data = Task.from_config(config).reading(config.data)
    notes = said_of(data.path, data) if data.path else []
    if encoder.chat is None:
        return notes
    end = encoder.tokenizer.convert_ids_to_tokens(encoder.end)
    notes.append(f"chat template of the tokenizer: loss on the answer and {end}, which ends it")
    if "strftime_now" in str(encoder.tokenizer.chat_template):
        notes.append("the chat template writes today's date: tomorrow's prompts differ, and --resume then finds other rows")
    return notes


def _render(config: Config, task: Task, dealt: Mapping[str, Table]) -> Prompts:
    """The training rows' prompts, a share of them inverted; the columns that the template names must be in every table."""
    template = task.rendering
    for rows in filter(None, dealt.values()):
        template.check_columns(list(rows[0].fields))
    inverted = inverted_rows(dealt["train"], config.format.inversion, config.train.seed)
    return Prompts(template, dealt["train"], inverted)


def _fingerprint(encoded: TokenTable, examples: Mapping[str, Sequence[Example]]) -> str:
    held_out = (frame for side in ("validation", "test") for frame in batches(examples[side], "input", "output", "context"))
    rows = (f"{asked}\0{answer}\0{context}".encode() for frame in held_out for asked, answer, context in frame.iter_rows())
    return runs.fingerprint([encoded.digest.encode(), *rows])


def _with_pieces(
    config: Config, vocabulary: Vocabulary, train: Sequence[Example], key: str | None
) -> tuple[Vocabulary, list[str]]:
    """The vocabulary with as many pieces as asked for, or, if that is left open, with what has proved worth it."""
    asked = config.model.adapt_vocabulary
    if not asked and not (asked is None and _may_adapt(config, len(train))):
        return vocabulary, []
    tokenizer: Any = vocabulary.tokenizer
    known = key and kept.key_of(key, asked, tokenizer.backend_tokenizer.to_str())
    pieces = kept.fact(known, lambda: _adapted(vocabulary, train, asked).pieces)
    note = f"vocabulary: {len(pieces):,} frequent pieces of the training texts are added"
    return vocabulary.with_tokens(pieces), [note] if pieces else []


def _adapted(vocabulary: Vocabulary, train: Sequence[Example], asked: int | None) -> Vocabulary:
    """With as many pieces as are asked for, or with some if they make the rows shorter by so much that it pays."""
    if asked:
        return vocabulary.with_pieces(_texts(train, len(train)), asked)
    try:  # where a tokenizer cannot take pieces, there is nothing to be gained
        adapted = vocabulary.with_pieces(_texts(train, MOST_ADAPT_ROWS), ADAPT_PIECES)
    except ModelError:
        return vocabulary
    counted = _texts(train, NUM_COUNTED)
    return vocabulary if adapted.num_tokens(counted) > ADAPT_WORTH * vocabulary.num_tokens(counted) else adapted


def _may_adapt(config: Config, num_rows: int) -> bool:
    alone = config.adapter.method == "full" and not config.mixture
    return alone and num_rows >= ADAPT_ROWS and num_parameters(config.model) < SMALL


def _texts(rows: Sequence[Example], most: int) -> list[str]:
    """Inputs and outputs of at most so many rows, taken evenly: the first rows of a sorted table are not like the others."""
    columns = batches(rows[:: max(1, -(-len(rows) // most))], "input", "output")
    return [text or "" for frame in columns for pair in frame.iter_rows() for text in pair]


def _trimmed(
    config: Config, vocabulary: Vocabulary, encoded: TokenTable, prompts: Sequence[Prompt]
) -> tuple[Vocabulary, list[str]]:
    """Without the tokens that the task does without; a tokenizer that resists stays whole."""
    wanted = config.model.trim_vocabulary
    # a mixture is trained for tasks that it does not hold, whose tokens nobody knows
    if not (config.adapter.method == "full" and not config.mixture if wanted is None else wanted):
        return vocabulary, []
    texts = [text for p in prompts[:NUM_COMPARED] for text in p.texts]
    try:
        trimmed = vocabulary.trimmed(encoded.used.tolist(), texts)
    except VocabularyError as error:
        return vocabulary, [f"the vocabulary stays whole: {error}"]
    return trimmed, [f"vocabulary: {trimmed.size:,} of {vocabulary.size:,} tokens are kept"]


def read_splits(config: Config, rejected: list[Rejected]) -> dict[str, Table]:
    """Read the files and deal the rows; files of their own for validation or test replace that share.

    A group key that the task's pack knows how to compute need not be a column of the table.
    """
    data = Task.from_config(config).reading(config.data)
    group, columns = _group_function(config), data
    if group:  # the key is computed, so no column of that name is asked for
        columns = data.model_copy(update={"split": data.split.model_copy(update={"key": None})})

    def read(path: str) -> Table:
        table, bad = read_examples(path, columns)
        # before a table that is mostly broken is found too small
        check_rejected_share(bad, len(table) + len(bad), data.max_rejected)
        rejected.extend(bad)
        if group is None:
            return table
        keys = group(table)
        return dataclasses.replace(
            table.with_field(str(config.data.split.key), keys), key=table.key and kept.key_of(table.key, keys)
        )

    return read_sides(data, read)


def _group_function(config: Config) -> Callable[[Sequence[Example]], list[str]] | None:
    """The pack's function for the split key, unless the table has a column of that name."""
    key, pack = config.data.split.key, Task.from_config(config).pack
    if config.data.split.method != "grouped" or pack is None or key is None or key not in pack.keys:
        return None
    assert config.data.path
    return None if key in open_table(config.data.path, config.data).columns else plugins.load(pack.keys[key])


def training_rows(folder: Path) -> Sequence[Example]:
    """The rows that a run was trained on, read again; none if it is no run folder or its table has gone.

    A table on the hub counts as gone unless somebody at the terminal agrees: what a run folder says is no permission to fetch.

    Raises:
        DataError: the table is there and cannot be read.
    """
    stored = folder / "config.yaml"
    if not stored.exists():
        return []
    config = load_config(stored)
    table = config.data.path or ""
    if table.startswith("hf://"):
        there = progress.confirmed(f"the run {str(folder)!r} was trained on {table}; fetch it for the baselines?")
    else:
        there = bool(table) and Path(table).exists()
    if not there:
        return []
    dealt = read_splits(config, [])
    _leave_out(dealt, config.data)
    return subset(dealt["train"], config.data.num_examples, config.data.split.seed)


def within_limits(rows: Rows, data: DataConfig) -> Rows:
    """The rows whose texts are no longer than the length settings allow; a conversation is read as a whole."""
    asked, answered = data.max_input_characters, data.max_output_characters
    if asked is None and answered is None:
        return rows
    inside = [np.zeros(0, bool)]
    for frame in batches(rows, "context", "input", "output"):
        lengths = frame.select(polars.col("input").str.len_chars(), polars.col("output").str.len_chars().fill_null(0))
        before = [sum(len(turn.content) for turn in read_context(cell)) for cell in frame["context"].to_list()]
        read, written = lengths["input"].to_numpy() + np.array(before), lengths["output"].to_numpy()
        inside.append((read <= (asked or np.inf)) & (written <= (answered or np.inf)))
    return take(rows, np.flatnonzero(np.concatenate(inside)))


def _leave_out(dealt: dict[str, Table], data: DataConfig) -> dict[str, int]:
    """Apply the length settings; returns counts by side."""
    counts: dict[str, int] = {}
    for side, rows in dealt.items():
        dealt[side] = within_limits(rows, data)
        if len(dealt[side]) < len(rows):
            counts[f"{side} rows by length settings"] = len(rows) - len(dealt[side])
    if not dealt["train"]:
        raise ConfigError(
            f"data.max_input_characters = {data.max_input_characters} and data.max_output_characters = "
            f"{data.max_output_characters} leave no row to train on"
        )
    return counts
