"""Encoded rows as token ids, block after block, memory-mapped from an Arrow file in the cache.

A table is tokenised once. The cache key is a hash of what decides the outcome: what the prompts are made from, the tokenizer,
and the encoder's settings; so a changed row, template or tokenizer never meets old tokens.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow
import pyarrow.ipc

from seqtune.data import kept
from seqtune.errors import SupervisionError
from seqtune.records import Encoded, Prompt
from seqtune.tokens.encode import Encoder

BLOCK_ROWS = 4096  # rows handed to the tokenizer at once; it uses all cores
FORMAT = "2"  # changes with what `Encoder` makes of a prompt
IDS, ROWS, FACTS = "tokens.arrow", "rows.npy", "facts.json"


@dataclass(frozen=True, slots=True)
class TokenTable(Sequence[Encoded]):
    """Encoded rows, read one by one.

    Attributes:
        blocks: token ids of consecutive rows, one row after the other, uint16 or uint32 arrays.
        firsts: the first row of each block, and the number of rows.
        lengths: tokens per row, int32 [N].
        loss_starts: `Encoded.loss_start` of each row, int32 [N].
        used: every id that occurs, ascending.
        digest: changes with any token, length or start.
        number: new id of every stored id, `None` to take them as they are.

    Example:
        >>> table = TokenTable.of([Encoded(np.array([7, 8, 9]), 1), Encoded(np.array([5, 6]), 1)])
        >>> len(table), table[1].input_ids.tolist(), table.lengths.tolist()
        (2, [5, 6], [3, 2])
    """

    blocks: Sequence[np.ndarray]
    firsts: list[int]
    lengths: np.ndarray
    loss_starts: np.ndarray
    used: np.ndarray
    digest: str
    number: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> TokenTable:
        """Rows that are in memory."""
        largest = max((int(row.input_ids.max()) for row in rows), default=0)
        builder = _Builder(np.uint16 if largest < 2**16 else np.uint32)
        blocks = [builder.add(rows[i : i + BLOCK_ROWS]) for i in range(0, len(rows), BLOCK_ROWS)]
        return builder.table(blocks)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

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
        block = bisect.bisect_right(self.firsts, index) - 1
        start = int(self.lengths[self.firsts[block] : index].sum())
        ids = self.blocks[block][start : start + self.lengths[index]].astype(np.int32)
        return Encoded(ids if self.number is None else self.number[ids], int(self.loss_starts[index]))

    @property
    def num_loss_tokens(self) -> np.ndarray:
        """Tokens per row that carry loss [N]."""
        return self.lengths - self.loss_starts

    def renumbered(self, kept_ids: np.ndarray) -> TokenTable:
        """The same rows after a vocabulary was trimmed to the ids `kept_ids`."""
        number = np.full(int(kept_ids.max()) + 1, -1, dtype=np.int32)
        number[kept_ids] = np.arange(len(kept_ids), dtype=np.int32)
        return replace(self, number=number)


class _Builder:
    """Takes rows block by block and keeps an account of them.

    Args:
        dtype: of the stored ids.
    """

    def __init__(self, dtype: type[np.unsignedinteger]):
        self.dtype = dtype
        self.counts: list[int] = []
        self._rows: list[np.ndarray] = [np.zeros((2, 0), np.int32)]
        self._seen = np.zeros(0, bool)
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, rows: Sequence[Encoded]) -> np.ndarray:
        """The ids of the rows in one array."""
        ids = np.concatenate([row.input_ids for row in rows])
        seen = np.bincount(ids, minlength=len(self._seen)) > 0
        seen[: len(self._seen)] |= self._seen
        self._seen = seen
        self.counts.append(len(rows))
        self._rows.append(np.array([[len(row.input_ids) for row in rows], [row.loss_start for row in rows]], np.int32))
        ids = ids.astype(self.dtype)
        self._hash.update(ids.tobytes() + self._rows[-1].tobytes())
        return ids

    def rows(self) -> np.ndarray:
        """Lengths and loss starts, int32 [2, N]."""
        return np.concatenate(self._rows, axis=1)

    def facts(self) -> dict[str, object]:
        """What is known of all rows together."""
        return {"counts": self.counts, "used": np.flatnonzero(self._seen).tolist(), "digest": self._hash.hexdigest()}

    def table(self, blocks: Sequence[np.ndarray]) -> TokenTable:
        """The table of the blocks that were made."""
        return _table(blocks, self.rows(), self.facts())


def _table(blocks: Sequence[np.ndarray], rows: np.ndarray, facts: dict[str, object]) -> TokenTable:
    firsts = [0, *itertools.accumulate(facts["counts"])]  # type: ignore[call-overload]
    return TokenTable(blocks, firsts, rows[0], rows[1], np.array(facts["used"], np.int64), str(facts["digest"]))


def encode_table(encoder: Encoder, prompts: Sequence[Prompt], key: str | None = None) -> tuple[TokenTable, dict[int, str]]:
    """Encode prompts for training, or take their tokens from the cache.

    Args:
        encoder: of the vocabulary to train in.
        prompts: read once, in order.
        key: hash of all that the prompts are made from; `None` to keep their tokens in memory.

    Returns:
        The usable rows, and the reason for every index that is not among them.
    """
    errors: dict[int, str] = {}
    small = encoder.vocab_size + encoder.num_virtual <= 2**16
    builder = _Builder(np.uint16 if small else np.uint32)
    if key is None:
        return builder.table([builder.add(rows) for rows in _encoded(encoder, prompts, errors)]), errors

    def save(folder: Path) -> None:
        schema = pyarrow.schema({"ids": pyarrow.uint16() if small else pyarrow.uint32()})
        folder.mkdir()
        with pyarrow.OSFile(str(folder / IDS), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
            for rows in _encoded(encoder, prompts, errors):
                writer.write_batch(pyarrow.record_batch([pyarrow.array(builder.add(rows))], schema))
        np.save(folder / ROWS, builder.rows())
        (folder / FACTS).write_text(json.dumps(builder.facts() | {"errors": list(errors.items())}))

    folder = kept.folder("tokens", kept.key_of(FORMAT, key, *_identity(encoder)), save)
    if folder is None:
        return encode_table(encoder, prompts)
    facts = json.loads((folder / FACTS).read_text())
    file = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / IDS)))
    columns = (file.get_batch(i).column(0) for i in range(file.num_record_batches))
    blocks = [np.frombuffer(column.buffers()[1], builder.dtype, len(column)) for column in columns]  # to_numpy imports pandas
    rows = np.asarray(np.load(folder / ROWS, mmap_mode="r"))  # shared between the processes of a training, as the tokens are
    return _table(blocks, rows, facts), dict(facts["errors"])


def _identity(encoder: Encoder) -> Iterator[object]:
    yield encoder.max_length, encoder.vocab_size, encoder.loss_on, encoder.start, encoder.end
    yield (encoder.tokenizer.chat_template, encoder.chat.frame) if encoder.chat else None
    yield encoder.tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]


def _encoded(encoder: Encoder, prompts: Sequence[Prompt], errors: dict[int, str]) -> Iterator[list[Encoded]]:
    """The usable rows, block by block; the reasons for the others are added to `errors`."""
    errors.clear()
    numbered = enumerate(prompts)
    while block := list(itertools.islice(numbered, BLOCK_ROWS)):
        rows: list[Encoded] = []
        for (index, _), row in zip(block, encoder.encode([prompt for _, prompt in block]), strict=True):
            if isinstance(row, SupervisionError):
                errors[index] = str(row)
            else:
                rows.append(row)
        if rows:
            yield rows
