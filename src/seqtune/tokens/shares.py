"""A mixture as it was asked for, and as it came out: prompts, tokens and tokens with loss of each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqtune.data.asking import MixedTask
from seqtune.data.table import FIELD, Table
from seqtune.tokens.token_table import TokenTable


@dataclass(frozen=True, slots=True)
class Share:
    """One task's part of the training.

    Attributes:
        task: its name.
        held_out: training does not see it.
        num_rows: training rows that it has.
        asked: share of the prompts that it was to have.
        num_prompts: prompts that are trained on.
        num_tokens: tokens of theirs.
        num_loss_tokens: those that carry loss.
        num_shots: number of solved examples -> prompts.
    """

    task: str
    held_out: bool
    num_rows: int
    asked: float
    num_prompts: int
    num_tokens: int
    num_loss_tokens: int
    num_shots: dict[str, int]


def shares(tasks: Sequence[MixedTask], train: Table, encoded: TokenTable) -> list[Share]:
    """What the training rows hold of each task.

    Args:
        tasks: of the mixture.
        train: prompts.
        encoded: parallel to `train`.
    """
    sums: dict[str, np.ndarray] = {task.name: np.zeros(3, np.int64) for task in tasks}
    shots: dict[str, Counter[str]] = {task.name: Counter() for task in tasks}
    start = 0
    for frame in train.batches(FIELD + "task", FIELD + "shots"):
        end = start + len(frame)
        counted = np.stack([np.ones(len(frame), np.int64), encoded.lengths[start:end], encoded.num_loss_tokens[start:end]])
        names = frame[FIELD + "task"].to_numpy()
        for name in set(names.tolist()):
            sums[name] += counted[:, names == name].sum(axis=1)
        for row in frame.group_by(FIELD + "task", FIELD + "shots").len().iter_rows():
            shots[row[0]][row[1]] += row[2]
        start = end
    return [
        Share(
            t.name, t.held_out, len(t.sides["train"]), t.share, *(int(sums[t.name][place]) for place in (0, 1, 2)),
            num_shots=dict(sorted(shots[t.name].items(), key=lambda each: int(each[0]))),
        )
        for t in tasks
    ]  # fmt: skip


def lines(mixture: Sequence[Share]) -> list[str]:
    """The mixture as a table of text: asked beside realised."""
    totals = [sum(getattr(share, name) for share in mixture) for name in ("num_prompts", "num_tokens", "num_loss_tokens")]
    heads = ("task", "rows", "asked", "prompts", "", "tokens", "", "loss tokens", "")
    table: list[tuple[str, ...]] = [heads]
    for share in mixture:
        counts = (share.num_prompts, share.num_tokens, share.num_loss_tokens)
        parts = [text for count, total in zip(counts, totals, strict=True) for text in (f"{count:,}", f"{count / total:.1%}")]
        asked = "held out" if share.held_out else f"{share.asked:.1%}"
        table.append((share.task, f"{share.num_rows:,}", asked, *parts))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in table
    ]
