"""Fields of a row -> a question and its answer, by one of a task's templates, written with columns in braces or in Jinja.

Jinja templates come from collections that other people wrote, so they run in a sandbox (`seqtune.data.sandbox`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from seqtune.data.sandbox import compiled, undeclared
from seqtune.data.templates import PRESETS, column_names
from seqtune.errors import ConfigError, DataError

OPTIONS, ANSWER = "\0", "\1"  # where a question lists the answers, and where a target holds one of them
CELL = re.compile(r"\s*(\[.*\]|\{.*\}|-?(0|[1-9]\d{0,15})|true|false|null)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Words:
    """A row in words.

    Attributes:
        source: the question, with `OPTIONS` where the template wants the answers to be listed.
        target: the answer, with `ANSWER` for the part of it that is one of the choices.
        answer: that part.
        choices: the answers to choose among; none for free text.
    """

    source: str
    target: str
    answer: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wording:
    """One template of a task.

    Attributes:
        name: as its collection calls it.
        source: text with {columns}; or Jinja.
        target: likewise; unused if the source holds both, parted by `|||`.
        language: "braces" or "jinja".
        choices: Jinja text of the answers, parted by `|||`, for tasks whose answers depend on the template or the row.
        lists_choices: the template itself lists the answers.
        original: it asks for the task's answer; others are for training alone.

    Example:
        >>> Wording("", "Name {smiles}:", "{output}").words({"smiles": "CCO", "output": "ethanol"}, (), 0)
        Words(source='Name CCO:', target='ethanol', answer='', choices=())
    """

    name: str
    source: str
    target: str
    language: Literal["braces", "jinja"] = "braces"
    choices: str | None = None
    lists_choices: bool = False
    original: bool = True

    def check(self) -> Wording:
        """Itself, if its texts can be read.

        Raises:
            ConfigError: a brace does not parse; or Jinja's reason.
        """
        if self.language == "jinja":
            if not self.target and "|||" not in self.source:
                raise ConfigError("it holds no `|||`, so there is no answer to learn")
            for text in (self.source, self.target, self.choices or ""):
                compiled(text)
        elif not column_names(self.target, "target"):
            raise ConfigError(f"target = {self.target!r}: it must name a column, or every answer would be the same")
        else:
            column_names(self.source, "template")
        return self

    @property
    def columns(self) -> list[str]:
        """Columns that it names, in order, `output` and `options` left out."""
        if self.language == "braces":
            found = [*column_names(self.source, "template"), *column_names(self.target, "target")]
        else:
            texts = (self.source, self.target, self.choices or "")
            found = [name for text in texts for name in sorted(undeclared(text))]
        return [name for name in dict.fromkeys(found) if name not in ("input", "output", "options", "answer_choices")]

    def words(self, fields: Mapping[str, str], answers: Sequence[str], draw: int) -> Words | None:
        """The row in words; `None` if the template does not apply to it, which Jinja says by an empty text.

        Args:
            fields: the row's columns; `output` as it shall be read.
            answers: the task's answers; empty for free text, or if the template has its own.
            draw: decides what the filter `choice` chooses.

        Raises:
            DataError: the template needs what the row has not.
        """
        if self.language == "braces":
            source = self.source.format_map({**fields, "options": OPTIONS})
            target = self.target.format_map({**fields, "output": ANSWER} if answers else fields)
            return Words(source, target, fields["output"] if answers else "", tuple(answers))
        try:
            return self._rendered({name: _value(cell) for name, cell in fields.items()} | {"__draw__": draw}, answers)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            raise DataError(f"template {self.name!r}: {type(error).__name__}: {error}") from None

    def _rendered(self, values: dict[str, Any], answers: Sequence[str]) -> Words | None:
        choices = tuple(answers)
        if self.choices is not None:
            choices = tuple(part.strip() for part in compiled(self.choices).render(values).split("|||"))
        values["answer_choices"] = list(choices)
        texts = compiled(self.source).render(values).split("|||")
        if self.target:
            texts = [texts[0], compiled(self.target).render(values)]
        source, target = (texts[0].strip(), texts[1].strip()) if len(texts) > 1 else ("", "")
        if not source or not target:
            return None
        return Words(source, ANSWER, target, choices) if target in choices else Words(source, target)


def wording_of(given: str | Mapping[str, Any], language: Literal["braces", "jinja"], target: str) -> Wording:
    """A template as a bundle writes it down, checked.

    Args:
        given: the question alone, or the keys `template`, and other keys of `Wording` where they are not the bundle's.
        language: of the texts.
        target: the bundle's.

    Raises:
        ConfigError: it cannot be read.
    """
    own = {"template": given} if isinstance(given, str) else given
    both = language == "jinja" and "|||" in own["template"]
    source, answer = PRESETS.get(own["template"], own["template"]), own.get("target") or ("" if both else target)
    name, choices, lists = own.get("name") or "", own.get("choices"), bool(own.get("lists_choices"))
    return Wording(name, source, answer, language, choices, lists, bool(own.get("original", True))).check()


def _value(cell: str) -> Any:
    """A cell as the collection's data sets have it: whole numbers, lists and objects for what, and texts.

    Example:
        >>> _value("3"), _value("007"), _value('["a"]'), _value("3.0")
        (3, '007', ['a'], '3.0')
    """
    if CELL.fullmatch(cell):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass
    return cell
