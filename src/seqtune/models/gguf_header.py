"""The header of a GGUF file, walked before another library reads it: what it announces must be there.

The reader of the package gguf takes announced lengths at their word: a file of a hundred bytes that announces 2^60 numbers
keeps it busy, and filling the memory, for good. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
MAX_VALUES = 2**22  # of all arrays together; each takes some 150 bytes of memory. Vocabularies have up to 300,000 words
MAX_DEPTH, MAX_DIMENSIONS = 3, 8


def check_header(file: Path) -> None:
    """Walk the header of a file.

    Raises:
        ValueError: it is no GGUF file, or announces more than there is.

    Example:
        `check_header(Path("model.gguf"))` is silent.
    """
    with file.open("rb") as handle:
        _Header(handle, file.stat().st_size).walk()


class _Header:
    def __init__(self, handle: BinaryIO, size: int):
        self.handle, self.size = handle, size
        self.order = "<"
        self.num_values = 0

    def walk(self) -> None:
        if self.handle.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if self._number("I") & 0xFFFF == 0:  # written on a machine of the other byte order
            self.order = ">"
        num_tensors, num_fields = self._number("Q"), self._number("Q")
        for _ in range(num_fields):
            self._skip_text()
            self._skip_value(self._number("I"), 0)
        for _ in range(num_tensors):
            self._skip_text()
            dimensions = self._number("I")
            if dimensions > MAX_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions:,} dimensions")
            self._skip(8 * dimensions + 4)  # their sizes, and the type
            if (offset := self._number("Q")) > self.size:
                raise ValueError(f"a tensor at {offset:,}, and the file has {self.size:,} bytes")

    def _number(self, kind: str) -> int:
        width = struct.calcsize(f"={kind}")
        content = self.handle.read(width)
        if len(content) < width:
            raise ValueError("its header is cut off")
        return struct.unpack(self.order + kind, content)[0]

    def _skip(self, length: int) -> None:
        if length > self.size - self.handle.tell():
            raise ValueError(f"{length:,} bytes are announced where the file ends")
        self.handle.seek(length, 1)

    def _skip_text(self) -> None:
        self._skip(self._number("Q"))

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind == STRING:
            self._skip_text()
        elif kind in SIZES:
            self._skip(SIZES[kind])
        elif kind == ARRAY and depth < MAX_DEPTH:
            inner, length = self._number("I"), self._number("Q")
            self.num_values += length
            if self.num_values > MAX_VALUES:
                raise ValueError(f"lists of {self.num_values:,} values are announced")
            if inner in SIZES:
                self._skip(SIZES[inner] * length)
            else:
                for _ in range(length):
                    self._skip_value(inner, depth + 1)
        else:
            raise ValueError(f"a value of the type {kind}")
