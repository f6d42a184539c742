"""Encoded rows as one column of token ids, memory-mapped from a cache of Arrow files.

A table is tokenised once. The cache key is a hash of what decides the outcome: the rendered texts, the tokenizer, and the
encoder's settings; so a changed row, template or tokenizer never meets old tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow
import pyarrow.ipc

from seqtune import folders
from seqtune.errors import SupervisionError
from seqtune.records import Encoded, Prompt
from seqtune.runs import fingerprint
from seqtune.tokens.encode import Encoder

ENCODE_ROWS = 10_000  # rows handed to the tokenizer at once; it uses all cores
CACHE_ROWS = 5_000  # fewer rows are encoded faster than a cache is looked up
FORMAT = "1"  # changes with what `Encoder` makes of a prompt


@dataclass(frozen=True, slots=True)
class TokenTable(Sequence[Encoded]):
    """Encoded rows, read one by one.

    Attributes:
        ids: tokens of all rows, one after the other, uint16 or uint32 [sum of T].
        offsets: where each row begins, and the end, int64 [N + 1].
        loss_starts: `Encoded.loss_start` of each row, int32 [N].
        number: new id of every stored id, `None` to take them as they are.

    Example:
        >>> table = TokenTable.of([Encoded(np.array([7, 8, 9]), 1), Encoded(np.array([5, 6]), 1)])
        >>> len(table), table[1].input_ids.tolist(), table.lengths.tolist()
        (2, [5, 6], [3, 2])
    """

    ids: np.ndarray
    offsets: np.ndarray
    loss_starts: np.ndarray
    number: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> TokenTable:
        """Rows that are in memory."""
        ids = np.concatenate([row.input_ids for row in rows]) if rows else np.zeros(0, dtype=np.int32)
        small = not len(ids) or ids.max() < 2**16
        lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
        return cls(
            ids.astype(np.uint16 if small else np.uint32),
            np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
            np.array([row.loss_start for row in rows], dtype=np.int32),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.loss_starts)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """One row, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        ids = self.ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)
        return Encoded(ids if self.number is None else self.number[ids], int(self.loss_starts[index]))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row [N]."""
        return np.diff(self.offsets)

    @property
    def num_loss_tokens(self) -> np.ndarray:
        """Tokens per row that carry loss [N]."""
        return self.lengths - self.loss_starts

    def used_ids(self) -> np.ndarray:
        """Every id that occurs, ascending."""
        return np.flatnonzero(np.bincount(self.ids))

    def renumbered(self, kept: np.ndarray) -> TokenTable:
        """The same rows after a vocabulary was trimmed to the ids `kept`."""
        number = np.full(int(kept.max()) + 1, -1, dtype=np.int32)
        number[kept] = np.arange(len(kept), dtype=np.int32)
        return TokenTable(self.ids, self.offsets, self.loss_starts, number)

    def fingerprint(self) -> str:
        """Changes with any token."""
        return fingerprint([np.ascontiguousarray(self.ids).tobytes(), self.offsets.tobytes(), self.loss_starts.tobytes()])


def encode_table(encoder: Encoder, prompts: Sequence[Prompt]) -> tuple[TokenTable, dict[int, str]]:
    """Encode prompts for training, or take their tokens from the cache.

    Returns:
        The usable rows, and the reason for every index that is not among them.
    """
    if len(prompts) < CACHE_ROWS:
        return _encode(encoder, prompts)
    key = fingerprint(_identity(encoder, prompts))
    folder = folders.cache("tokens") / key
    if not (folder / "tokens.arrow").exists():
        table, errors = _encode(encoder, prompts)
        try:
            _write(folder, table, errors)
        except OSError:  # no room or no permission: a cache is a convenience
            return table, errors
    return _read(folder)


def _identity(encoder: Encoder, prompts: Sequence[Prompt]) -> Iterable[bytes]:
    yield f"{FORMAT} {encoder.max_length} {encoder.vocab_size} {encoder.loss_on} {encoder.start} {encoder.end}".encode()
    if encoder.chat:
        yield f"{encoder.tokenizer.chat_template}\0{encoder.chat.frame}".encode()
    yield encoder.tokenizer.backend_tokenizer.to_str().encode()  # type: ignore[attr-defined]
    for prompt in prompts:
        yield f"{prompt.source}\0{prompt.target}{prompt.context or ''}".encode("utf-8", "surrogatepass")


def _encode(encoder: Encoder, prompts: Sequence[Prompt]) -> tuple[TokenTable, dict[int, str]]:
    rows: list[Encoded] = []
    errors: dict[int, str] = {}
    for start in range(0, len(prompts), ENCODE_ROWS):
        for index, row in enumerate(encoder.encode(list(prompts[start : start + ENCODE_ROWS])), start):
            if isinstance(row, SupervisionError):
                errors[index] = str(row)
            else:
                rows.append(row)
    return TokenTable.of(rows), errors


def _write(folder: Path, table: TokenTable, errors: dict[int, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folders.writing(folder) as hidden:
        hidden.mkdir()
        _save(hidden / "errors.arrow", index=list(errors), reason=list(errors.values()))
        _save(hidden / "rows.arrow", length=table.lengths, loss_start=table.loss_starts)
        _save(hidden / "tokens.arrow", ids=table.ids)


def _save(path: Path, **columns: Any) -> None:
    table = pyarrow.table(columns)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))  # one chunk can be mapped as one array


def _open(path: Path) -> pyarrow.Table:
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


def _read(folder: Path) -> tuple[TokenTable, dict[int, str]]:
    rows = _open(folder / "rows.arrow")
    column = _open(folder / "tokens.arrow")["ids"]
    ids = column.chunk(0).to_numpy(zero_copy_only=True) if column.num_chunks else np.zeros(0, dtype=np.uint16)
    offsets = np.concatenate([[0], rows["length"].to_numpy().cumsum()]).astype(np.int64)
    errors = _open(folder / "errors.arrow").to_pydict()
    return TokenTable(ids, offsets, rows["loss_start"].to_numpy()), dict(zip(errors["index"], errors["reason"], strict=True))
