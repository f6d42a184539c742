"""The forms in which a row can be asked: with the answers listed, with reasoning, the other way round, after solved examples.

Facts behind them (arXiv 2109.01652, 2210.11416): answers in several styles, with the target rewritten where a style gives them
names; chains of thought before the answer; inputs inverted, for chains of thought in four orders; 1, 2 or 5 solved examples,
parted by blank lines.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seqtune.data.wordings import ANSWER, OPTIONS, Words
from seqtune.records import Example


@dataclass(frozen=True, slots=True)
class Style:
    """A way of listing answers.

    Attributes:
        head: text before the list.
        mark: text before an answer, with {letter} or {number}.
        name: what the target says instead of the answer; "" to keep the answer.
        between: text between answers.
    """

    head: str
    mark: str
    name: str = ""
    between: str = "\n"

    def listed(self, choices: Sequence[str], answer: str) -> tuple[str, str]:
        """The list, and the answer as the target is to say it.

        Example:
            >>> Style("", "({letter}) ", "({letter})", " ").listed(["no", "yes"], "yes")
            ('(A) no (B) yes', '(B)')
        """
        names = [{"letter": chr(ord("A") + place), "number": place + 1} for place in range(len(choices))]
        lines = [self.mark.format_map(name) + choice for name, choice in zip(names, choices, strict=True)]
        said = self.name.format_map(names[choices.index(answer)]) if self.name else answer
        return self.head + self.between.join(lines), said


STYLES = (
    Style("Options:\n", "- "),  # the first is the one that tests are asked in: the answer stays as it is
    Style("Choose from: ", "", between=" / "),
    Style("Options:\n", "({letter}) ", "({letter})"),
    Style("", "{letter}. ", "{letter}"),
    Style("Possible answers:\n", "{number}) ", "{number}"),
)
MOST_LISTED = 26  # answers; there are no more letters
SEPARATORS = ("\n\n", "\n\n\n")  # between solved examples
CHAINS = (  # what is added to the question, and the target
    ("\nThink it through step by step.", "{chain}\nThe answer is {answer}"),
    ("\nExplain how you get to the answer before you give it.", "{chain}\nSo the answer is {answer}"),
    ("\nReasoning first, answer last.", "{chain} Answer: {answer}"),
)
INVERSIONS = (
    ("{answer}\n\nThis is an answer. What was asked?", "{question}"),
    ("Write a question to which the right answer is: {answer}", "{question}"),
)
ORDERS = (  # of question, chain of thought and answer: what is given, and what is asked for
    ("Answer: {answer}\n\nWrite a question with this answer, and how to get there.", "{question}\n\n{chain}"),
    ("{chain}\nAnswer: {answer}\n\nWhat was the question?", "{question}"),
    ("{question}\nAnswer: {answer}\n\nHow does one get there?", "{chain}"),
    ("{chain}\n\nWhat was the question, and what is the answer?", "{question}\n\nAnswer: {answer}"),
)


@dataclass(frozen=True, slots=True)
class Form:
    """How one prompt is made; places in the lists above, -1 for none.

    Attributes:
        wording: place among the task's templates.
        num_shots: solved examples before the question.
        style: of `STYLES`.
        chain: of `CHAINS`.
        inversion: of `INVERSIONS`, or of `ORDERS` for a row with a chain of thought.
    """

    wording: int = 0
    num_shots: int = 0
    style: int = -1
    chain: int = -1
    inversion: int = -1


def pose(words: Words, form: Form, chain: str, draw: random.Random, *, ordered: bool) -> tuple[str, str]:
    r"""Question and answer of one row.

    Args:
        words: the row.
        form: how to ask it.
        chain: its reasoning, "" without any.
        draw: shuffles the listed answers.
        ordered: answers are listed as they stand.

    Example:
        >>> pose(Words("Is it?", ANSWER, "no", ("yes", "no")), Form(style=3), "", random.Random(0), ordered=True)
        ('Is it?\\nA. yes\\nB. no', 'B')
    """
    plain = words.target.replace(ANSWER, words.answer)
    if form.inversion >= 0:
        question = _with_options(words.source, "")
        asked, wanted = (ORDERS if chain else INVERSIONS)[form.inversion]
        parts = {"question": question, "answer": plain, "chain": chain}
        return asked.format_map(parts), wanted.format_map(parts)
    block, answer = "", words.answer
    if form.style >= 0 and words.choices and len(words.choices) <= MOST_LISTED:
        choices = list(words.choices)
        if not ordered:
            draw.shuffle(choices)
        block, answer = STYLES[form.style].listed(choices, words.answer)
    source, target = _with_options(words.source, block), words.target.replace(ANSWER, answer)
    if form.chain >= 0 and chain:
        source += CHAINS[form.chain][0]
        target = CHAINS[form.chain][1].format(chain=chain, answer=target)
    return source, target


def _with_options(source: str, block: str) -> str:
    """The question with the list in its place, or below it; without a list, without the blanks around its place."""
    if OPTIONS not in source:
        return f"{source}\n{block}" if block else source
    before, after = (part.replace(OPTIONS, "") for part in source.split(OPTIONS, 1))
    if block:
        return before + block + after
    return before.rstrip() + ("\n" + after.strip() if after.strip() else "")


def exemplars(
    pool: Sequence[Example], num_shots: int, words_of: Callable[[Example], Words | None], own: Words, draw: random.Random
) -> list[tuple[Example, Words]]:
    """Solved examples for a question: different rows, in a random order, none of which asks the same as the row itself."""
    found: list[tuple[Example, Words]] = []
    for index in draw.sample(range(len(pool)), min(len(pool), 2 * num_shots + 2)) if num_shots else ():
        words = words_of(pool[index])
        if words is not None and words.source != own.source:
            found.append((pool[index], words))
        if len(found) == num_shots:
            break
    return found


def joined(shots: Sequence[tuple[str, str]], source: str, between: str, separator: str, most: int) -> tuple[str, int]:
    """The question after solved examples, fewer of them if the text gets longer than `most`; and how many are left.

    Example:
        >>> joined([("1+1", "2"), ("2+2", "4")], "3+3", "=", "; ", 12)
        ('2+2=4; 3+3', 1)
    """
    parts = [question + between + answer + separator for question, answer in shots]
    while parts and sum(map(len, parts)) + len(source) > most:
        del parts[0]
    return "".join(parts) + source, len(parts)
