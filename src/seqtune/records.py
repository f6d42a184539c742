"""One record type per hop: Example -> Prompt -> Encoded -> Batch -> Hypothesis -> Prediction -> Score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


def lone_surrogate(text: str) -> str | None:
    r"""The first surrogate without its other half, such as "U+D800"; a text with one cannot be written as UTF-8.

    A JSON escape can spell one, and Python's `surrogateescape` turns an invalid byte into one (U+DC80 to U+DCFF).

    Example:
        >>> lone_surrogate("a\ud800"), lone_surrogate("\U0001f600")
        ('U+D800', None)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return None


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said in a conversation, and by whom: "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a table.

    Attributes:
        id: the row's name: the id column, or the line number.
        input: text of the input column.
        output: text of the output column, outer blanks removed; `None` where there is no reference (prediction).
        fields: all columns of the row, for templates and grouped splits.
        file: where the row came from.
        line: line in that file on which the row ends, 1-based (row number for Parquet).
        context: turns before the input, if the row is a conversation; the model reads them and carries no loss on them.
    """

    id: str
    input: str
    output: str | None
    fields: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    line: int = 0
    context: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        # answers have no outer blanks (`Template.answer`), so no answer would ever equal an output with some
        if self.output is not None:
            object.__setattr__(self, "output", self.output.strip())

    @property
    def question(self) -> tuple[tuple[Turn, ...], str]:
        """All that the answer depends on; equal for rows that ask the same."""
        return self.context, self.input


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text a model reads (`source`) and the text it learns to write (`target`); in a chat after the turns of `context`."""

    source: str
    target: str | None
    inverted: bool = False
    context: tuple[Turn, ...] = ()

    @property
    def texts(self) -> list[str]:
        """All texts, in order."""
        return [*(turn.content for turn in self.context), self.source, self.target or ""]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a prompt and its target.

    Attributes:
        input_ids: int32 array [T]: source tokens, target tokens, end of sequence.
        loss_start: index of the first token that carries loss; all later tokens carry it too.
    """

    input_ids: np.ndarray
    loss_start: int

    @property
    def num_loss_tokens(self) -> int:
        """How many tokens of this row carry loss."""
        return len(self.input_ids) - self.loss_start


@dataclass(frozen=True, slots=True)
class Batch:
    """A right-padded batch; padding follows every real token, so causal attention needs no mask unless rows are packed.

    Attributes:
        input_ids_BT: token ids, int64 [B, T].
        positions_N: flat indices into B*T of the positions whose *next* token carries loss, int64 [N].
        targets_N: those next tokens, int64 [N].
        num_tokens: real (non-padding) tokens.
        places_BT: where each token stands in its own row, int64 [B, T]; `None` unless rows are packed.
        documents_BT: which row each token belongs to, int64 [B, T]; likewise.
    """

    input_ids_BT: torch.Tensor
    positions_N: torch.Tensor
    targets_N: torch.Tensor
    num_tokens: int
    places_BT: torch.Tensor | None = None
    documents_BT: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; from pinned memory the copy does not wait."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """The same batch in pinned memory."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            change(self.input_ids_BT),
            change(self.positions_N),
            change(self.targets_N),
            self.num_tokens,
            None if self.places_BT is None else change(self.places_BT),
            None if self.documents_BT is None else change(self.documents_BT),
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an engine found for one input: token ids, before they become text.

    Attributes:
        ids: target ids, up to and including the end token if the model wrote it.
        score: sum of natural-log token probabilities.
    """

    ids: list[int]
    score: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded text.

    Attributes:
        text: the decoded, post-processed text.
        score: sum of natural-log token probabilities, the end token included.
        num_tokens: tokens that the sum runs over.
        finished: the model wrote its end token within the limit.
        verdict: what a verifier says of it; "" if none was asked.
    """

    text: str
    score: float
    num_tokens: int
    finished: bool
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Everything known about one predicted item; one line of `predictions.jsonl`.

    Attributes:
        id: the row's name.
        input: what was asked.
        reference: the right answer, `None` if unknown.
        prediction: the answer; "" if there is none.
        score: log-probability of the answer.
        hypotheses: what the search found, best first.
        status: `ok`, `unfinished`, `empty`, `too_long`, `invalid_text`; with a verifier `verified`, `unverified`,
            `not_checked`, `abstained`; or a task's own word for an odd input.
        details: what a task's inspection, verifier and metrics found out, such as a structure read back from a name.
        fields: the row's other columns that the template needs, so that the same question can be asked again.
        context: the turns before the input, likewise.
    """

    id: str
    input: str
    reference: str | None
    prediction: str
    score: float
    hypotheses: tuple[Hypothesis, ...]
    status: str
    details: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    context: tuple[Turn, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the keys of the run-folder contract, in order; what does not apply is left out."""
        record = asdict(self)
        for optional in ("details", "fields", "context"):
            if not record[optional]:
                del record[optional]
        for hypothesis in record["hypotheses"]:
            if not hypothesis["verdict"]:
                del hypothesis["verdict"]
        return record


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value with its 95% interval and the signature that says how it was computed."""

    value: float
    low: float
    high: float
    signature: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form used in `metrics.json`."""
        return asdict(self)
