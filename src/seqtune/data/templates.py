"""Rows -> Prompt, and written text -> answer: pure strings. Presets, columns in braces and format inversion live here."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from seqtune.data.splits import hash_order
from seqtune.data.table import take
from seqtune.errors import ConfigError, DataError, did_you_mean
from seqtune.records import Example, Prompt, Turn
from seqtune.sections import FormatConfig

# `paper`: arXiv 2402.05616, the instruction for its SMILES -> IUPAC task.
PRESETS = {
    "plain": "{input}",
    "chat": "{input}",  # the user's turn; the rest is the tokenizer's own chat template
    "paper": "Translate the following SMILES string into an IUPAC name: {input}",
}


@dataclass(frozen=True, slots=True)
class Template:
    """Instruction and target text with columns in braces.

    Attributes:
        instruction: what the model reads; in a chat the user's turn.
        target: what it writes.
        separator: text between them.
        opening: a chat's first turns, before those of a row: a system turn or nothing; `None` if this is no chat.

    Example:
        >>> template = Template("Name {input}:", "{output}", " ")
        >>> template.render(Example("1", "CCO", "ethanol"))
        Prompt(source='Name CCO: ', target='ethanol', inverted=False, context=())
    """

    instruction: str
    target: str
    separator: str
    opening: tuple[Turn, ...] | None = None

    @classmethod
    def from_config(cls, config: FormatConfig) -> Template:
        """Resolve presets and check the braces.

        Raises:
            ConfigError: braces do not parse, or {input}/{output} is missing or misplaced.
        """
        instruction = PRESETS.get(config.template, config.template)
        names = column_names(instruction, "format.template")
        if "input" not in names:
            raise ConfigError(
                f"format.template = {config.template!r}: it must contain {{input}} or be a preset "
                f"({', '.join(PRESETS)}){did_you_mean(config.template, PRESETS)}; "
                "{input} stands for the input column, whatever it is called"
            )
        if "output" in names:
            raise ConfigError("format.template must not contain {output}: the model would read its answer")
        if column_names(config.target, "format.target").count("output") != 1:
            raise ConfigError(f"format.target = {config.target!r}: it must contain {{output}} once")
        if config.template != "chat":
            return cls(instruction, config.target, config.separator)
        opening = () if config.system is None else (Turn("system", config.system),)
        return cls(instruction, config.target, "", opening)

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The roles of a conversation before its first answer; `None` if this is no chat."""
        return None if self.opening is None else (*(turn.role for turn in self.opening), "user")

    @property
    def source_columns(self) -> set[str]:
        """Columns beside input and output that the model reads."""
        return {*column_names(self.instruction, "format.template")} - {"input", "output"}

    @property
    def target_columns(self) -> set[str]:
        """Columns beside input and output that the target is made of."""
        return {*column_names(self.target, "format.target")} - {"input", "output"}

    def check_columns(self, columns: Sequence[str], *, with_target: bool = True) -> None:
        """Refuse a table that lacks a column of the template.

        Args:
            columns: of the table.
            with_target: the target's columns are needed too; prediction does without.

        Raises:
            ConfigError: names the column and what there is.
        """
        used = self.source_columns | (self.target_columns if with_target else set())
        for name in sorted(used - set(columns)):
            raise ConfigError(
                f"the template uses {{{name}}}, which is no column{did_you_mean(name, columns)}; columns: {', '.join(columns)}"
            )

    def render(self, example: Example, *, inverted: bool = False) -> Prompt:
        """Fill in a row; without an output there is no target.

        With `inverted` the model reads the target and writes the instruction (format inversion, arXiv 2402.05616).

        Raises:
            DataError: the row is a conversation of several turns, and this is no chat.
        """
        columns = dict(example.fields) | {"input": example.input, "output": example.output or ""}
        instruction = self.instruction.format_map(columns)
        target = None if example.output is None else self.target.format_map(columns)
        if inverted:
            assert target is not None, "only rows with an output can be inverted"
            return Prompt(target + self.separator, instruction, inverted=True)
        return Prompt(instruction + self.separator, target, context=self._context(example))

    def _context(self, example: Example) -> tuple[Turn, ...]:
        """The turns before the question; a conversation's own system turn stands in for the task's."""
        if self.opening is None:
            if example.context:
                raise DataError(
                    f"{example.file}, line {example.line}: the conversation has turns before its last question, which only "
                    "a chat template can show: --set format.template=chat"
                )
            return ()
        own = bool(example.context) and example.context[0].role == "system"
        return example.context if own else self.opening + example.context

    def answer(self, text: str, example: Example) -> str:
        """The part of a text written by the model that stands for {output}, without outer blanks.

        The target's fixed text is removed, and so are its other columns: the row's own values, or, where the model wrote
        other values or the row has none, any text up to the next fixed text.

        Example:
            >>> template = Template("{input}", "{kind}: {output}", " ")
            >>> template.answer("alcohol: ethanol", Example("1", "CCO", None))
            'ethanol'
        """
        own = {**example.fields, "input": example.input}
        targets = [_pattern(self.target.format_map(_Values(known, output=OUTPUT))) for known in (own, {})]
        sides = [target.partition(OUTPUT) for target in targets]
        start = _first_match([before for before, _, _ in sides], text)
        text = text[start.end() :] if start else text
        end = _first_match([rf"(.*){after}\Z" for _, _, after in sides], text)
        return (end[1] if end else text).strip()


OUTPUT, ANYTHING = "\0", "\1"  # what {output} and a column without a value become in a target that is to be undone


class _Values(dict[str, str]):
    """Column -> value, `ANYTHING` for a column that has none."""

    def __missing__(self, name: str) -> str:
        return ANYTHING


def _pattern(target: str) -> str:
    """The regular expression of a filled-in target, with any blanks around it."""
    return rf"\s*{re.escape(target.strip()).replace(ANYTHING, '.*?')}\s*"


def _first_match(patterns: Sequence[str], text: str) -> re.Match[str] | None:
    return next((found for pattern in patterns if (found := re.match(pattern, text, re.DOTALL))), None)


def column_names(text: str, setting: str) -> list[str]:
    """The columns that a text has in braces, in order.

    Raises:
        ConfigError: the braces do not parse, or hold more than a name.
    """
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as error:
        raise ConfigError(f"{setting} = {text!r}: {error}; write a literal brace as {{{{ or }}}}") from None
    names = [name for name, _, _ in fields if name is not None]
    for name, spec, conversion in fields:
        # plain names only: `{input.__class__}` or `{input!r}` would give access to Python objects
        if name is not None and (not name or "." in name or "[" in name or spec or conversion):
            raise ConfigError(f"{setting} = {text!r}: write columns as {{name}}, nothing else in the braces")
    return names


@dataclass(frozen=True, slots=True)
class Prompts(Sequence[Prompt]):
    """Rows as prompts, filled in where one is asked for.

    Attributes:
        template: what they are put into.
        rows: N rows of a table.
        inverted: which of them are inverted, bool [N].
    """

    template: Template
    rows: Sequence[Example]
    inverted: np.ndarray

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        """One prompt, or a list of them."""
        if isinstance(index, slice):
            return list(Prompts(self.template, self.rows[index], self.inverted[index]))
        return self.template.render(self.rows[index], inverted=bool(self.inverted[index]))

    def __iter__(self) -> Iterator[Prompt]:
        """All prompts."""
        for example, inverted in zip(self.rows, self.inverted.tolist(), strict=True):
            yield self.template.render(example, inverted=inverted)

    def take(self, positions: np.ndarray) -> Prompts:
        """The prompts at `positions`, which must ascend."""
        return Prompts(self.template, take(self.rows, positions), self.inverted[positions])


def inverted_rows(examples: Sequence[Example], share: float, seed: int) -> np.ndarray:
    """Which rows to invert, bool [N]: exactly `share` of them. The rows of a smaller share are among those of a larger one."""
    chosen = np.zeros(len(examples), bool)
    if share:
        chosen[hash_order(examples, seed, "inversion")[: round(share * len(examples))]] = True
    return chosen
