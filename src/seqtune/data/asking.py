"""A task's rows -> prompts: which form each row is asked in, and the question and answer that come of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars

from seqtune.data.bundles import Bundle
from seqtune.data.forms import CHAINS, INVERSIONS, ORDERS, SEPARATORS, STYLES, Form, exemplars, joined, pose
from seqtune.data.table import FIELD, Table
from seqtune.data.tasks import Task
from seqtune.data.wordings import Words
from seqtune.errors import DataError
from seqtune.records import Example
from seqtune.sections import MixtureConfig

COLUMNS = ("task", "row", "shots")  # of a table of prompts, beside input and output


@dataclass(slots=True)
class MixedTask:
    """A task of a mixture.

    Attributes:
        bundle: what it is.
        held_out: training never sees it.
        sides: its rows by split.
        pool: solved examples: training rows, or those of the bundle's own table.
        share: of the prompts, as asked.
        count: prompts that are drawn, 0 for a task that is not trained on.
    """

    bundle: Bundle
    held_out: bool
    sides: dict[str, Table] = field(default_factory=dict)
    pool: Sequence[Example] = ()
    share: float = 0.0
    count: int = 0

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.bundle.name

    @property
    def task(self) -> Task:
        """What its prompts ask, as answers are found and scored: the finished question goes in, the answer comes out."""
        bundle = self.bundle
        return Task(
            "input", "output", "plain", "{output}", "", bundle.max_new_tokens, bundle.plugin,
            answers=tuple(bundle.words) or None, ordered=bundle.ordered,
        )  # fmt: skip


def spread(shares: Sequence[float], count: int, generator: np.random.Generator) -> np.ndarray:
    """Places in `shares`, each as often as its share says, up to one, in a random order, int8 [count]."""
    edges = np.concatenate([[0.0], np.cumsum(shares)]) * (count / sum(shares)) + generator.random()
    places = np.repeat(np.arange(len(shares), dtype=np.int8), np.diff(np.floor(edges).astype(np.int64)))
    generator.shuffle(places)
    return places


def training_forms(task: MixedTask, config: MixtureConfig, count: int, generator: np.random.Generator) -> list[Form]:
    """The forms of so many prompts, each share kept up to one."""

    def one_of(share: float, number: int) -> np.ndarray:
        return spread([1 - share, *[share / number] * number], count, generator) - 1

    bundle, none = task.bundle, np.full(count, -1)
    has_choices = bool(bundle.words) or any(w.choices for w in bundle.wordings)
    shots = np.array(list(config.shots))[spread(list(config.shots.values()), count, generator)]
    columns = (
        spread([1.0] * len(bundle.wordings), count, generator),
        shots,
        one_of(config.options, len(STYLES)) if has_choices else none,
        one_of(config.chain, len(CHAINS)) if bundle.chain else none,
        one_of(config.inversion, len(ORDERS if bundle.chain else INVERSIONS)),
    )
    return [Form(*map(int, row)) for row in zip(*columns, strict=True)]


def plain_forms(
    task: MixedTask, config: MixtureConfig, count: int, num_shots: int, generator: np.random.Generator
) -> list[Form]:
    """Plain questions: all templates that ask for the answer, answers listed in one style if the mixture lists any."""
    wordings = task.bundle.wordings
    places = [place for place, wording in enumerate(wordings) if wording.original] or list(range(len(wordings)))
    style = 0 if config.options else -1
    return [Form(places[drawn], num_shots, style) for drawn in spread([1.0] * len(places), count, generator).tolist()]


@dataclass(frozen=True, slots=True)
class Asker:
    """Makes prompts of a task's rows.

    Attributes:
        task: with its pool.
        seed: of all draws.
        between: text between question and answer, for solved examples.
        most: `MixtureConfig.max_characters`.
        testing: always the first separator.
    """

    task: MixedTask
    seed: int
    between: str
    most: int
    testing: bool = False

    def words(self, row: Example, form: Form, number: int) -> Words | None:
        """The row in the words of the form's template, or of the next one that applies to it.

        Raises:
            DataError: the answer is none of the task's answers; or a template fails.
        """
        bundle = self.task.bundle
        fields = bundle.fields(row)
        if bundle.words and fields["output"] not in bundle.words:
            raise DataError(f"the output {fields['output'][:60]!r} is none of the answers {', '.join(bundle.words)[:200]}")
        for place in range(len(bundle.wordings)):
            wording = bundle.wordings[(form.wording + place) % len(bundle.wordings)]
            if words := wording.words(fields, bundle.words, number):
                return replace(words, choices=()) if wording.lists_choices else words
        return None

    def ask(self, row: Example, form: Form, number: int) -> tuple[str, str, int]:
        """Question, answer, and the number of solved examples before it.

        Raises:
            DataError: the row cannot be asked.
        """
        draw = random.Random(f"{self.seed}/{self.task.name}/{number}")  # noqa: S311 - not for secrets
        words = self.words(row, form, number)
        if words is None:
            raise DataError("no template of the task applies to the row")
        ordered, chain_of = self.task.bundle.ordered, self.task.bundle.chain_of
        source, target = pose(words, form, chain_of(row), draw, ordered=ordered)
        solved = exemplars(self.task.pool, form.num_shots, lambda other: self._solved(other, form, number), words, draw)
        shots = [pose(each, form, chain_of(other), draw, ordered=ordered) for other, each in solved]
        separator = SEPARATORS[0] if self.testing else draw.choice(SEPARATORS)
        source, num_shots = joined(shots, source, self.between, separator, self.most)
        if not source.strip() or not target.strip():
            raise DataError("the question or its answer is blank")
        return source, target, num_shots

    def _solved(self, row: Example, form: Form, number: int) -> Words | None:
        try:
            return self.words(row, form, number)
        except DataError:
            return None

    def frame(self, rows: Iterable[tuple[Example, Form]], first: int, faults: list[tuple[int, str]]) -> polars.DataFrame:
        """Prompts as a frame of a `Table`, numbered from `first` + 1; what cannot be asked is added to `faults`."""
        made: list[tuple[int, str, str, str, str, str]] = []
        for number, (row, form) in enumerate(rows, start=first + 1):
            place = f"{row.file}:{row.line}"
            try:
                source, target, num_shots = self.ask(row, form, number)
            except DataError as error:
                faults.append((number, f"{self.task.name}: {place}: {error}"))
            else:
                made.append((number, source, target, self.task.name, place, str(num_shots)))
        names = ("line", "input", "output", *(FIELD + name for name in COLUMNS))
        schema = {name: polars.Int64 if name == "line" else polars.String for name in names}
        return polars.DataFrame(made, schema=schema, orient="row")
