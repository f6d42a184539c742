"""Packed files, unpacked as they are read, as long as they hold about as much as texts of their size can hold.

A few kilobytes can unpack to gigabytes. So what comes out is weighed against what went in, a window at a time: each 2 MiB must
come from at least a 500th of that. Tables of texts are packed to a tenth, those that repeat a long text in every row to a
three-hundredth; gzip can reach 1:1,000 and Zstandard 1:30,000 where there is nothing but repetition.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import zstandard

from seqtune.errors import DataError

try:  # unpacks several times faster
    igzip: Any = importlib.import_module("isal.igzip")
    ISAL_ERRORS: tuple[type[Exception], ...] = (importlib.import_module("isal.isal_zlib").error,)
except ImportError:
    igzip, ISAL_ERRORS = gzip, ()

BROKEN = (  # what a damaged file raises
    EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, zipfile.BadZipFile, lzma.LZMAError, *ISAL_ERRORS,
)  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
ZIP = "zip"  # holds files, of which one is read
ENTRIES = 10_000  # of a zip
WINDOW = 2**21  # unpacked bytes that are weighed together
EXPANSION = 500
PIECE = 2**10  # packed bytes taken at once; of Zstandard they unpack to 32 MiB at most, of bzip2 to 20
FRAMES: dict[str, Callable[[], Any]] = {  # makes what unpacks one frame
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(), "bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor,
}  # fmt: skip


def unpacked(path: Path, compression: str | None, member: str = "") -> BinaryIO:
    """A file's content, plain or packed.

    Args:
        path: the file.
        compression: a value of `COMPRESSIONS`, or `ZIP`; `None` for a plain file.
        member: of a zip, the file in it.

    Returns:
        A stream. Reading from it raises one of `BROKEN` for a file that is damaged or cut off, and `DataError` for one that
        unpacks to more than a table can hold.
    """
    if compression is None:
        return path.open("rb")
    if compression == ZIP:
        return _from_zip(path, member)
    packed = _Packed(path)
    source = igzip.GzipFile(fileobj=packed, mode="rb") if compression == "gzip" else _Frames(packed, FRAMES[compression])
    return io.BufferedReader(_Weighed(source, packed), 2**17)


@contextlib.contextmanager
def seekable(path: Path, compression: str | None, member: str = "") -> Iterator[Path | IO[bytes]]:
    """A file that can be read from any place: itself, or what is in it as a temporary file."""
    if compression is None:
        yield path
        return
    with tempfile.TemporaryFile() as plain, unpacked(path, compression, member) as source:
        shutil.copyfileobj(source, plain)
        plain.seek(0)
        yield plain


def files_in(path: Path) -> list[str]:
    """The names of the files in a zip, less what systems put beside them. Nothing is written, so no name leads anywhere.

    Raises:
        DataError: it is no zip, or holds too many.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.filename[-1:] not in ("", "/")]
    except (*BROKEN, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{str(path)!r} cannot be read as a zip: {error}") from None
    if len(names) > ENTRIES:
        raise DataError(f"{str(path)!r} holds {len(names):,} files, more than {ENTRIES:,}")
    return [name for name in names if not re.search(r"(^|/)(__MACOSX/|\.[^./])", name)]


def check_expansion(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a zip whose entries say that they unpack to too much; more than they say is not read.

    Raises:
        DataError: they do.
    """
    if sum(entry.file_size for entry in entries) > max(WINDOW, EXPANSION * path.stat().st_size):
        raise too_large(path, "bytes")


def _from_zip(path: Path, member: str) -> BinaryIO:
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(member)
            check_expansion(path, [entry])
            return io.BufferedReader(_Entry(archive.open(entry)), 2**17)  # the file stays open after the archive is closed
    except (NotImplementedError, RuntimeError) as error:  # a method that Python does not know; a password
        raise DataError(f"{str(path)!r}: {member!r} cannot be unpacked: {error}") from None
    except (OSError, ValueError, KeyError) as error:  # places that are none
        raise EOFError(str(error)) from None


def too_large(path: Path, unit: str) -> DataError:
    """The error for a file that holds far more than its size allows."""
    return DataError(
        f"{str(path)!r} unpacks to more than {EXPANSION} times as many {unit} as it has bytes; tables do not, but files that "
        "are made to fill the memory do. If it is right all the same, give its content plain (that of Parquet as CSV or JSONL)"
    )


class _Packed(io.RawIOBase):
    """The file itself, handed out in small pieces, so that what comes out can be weighed against what went in."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("rb")
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """Bytes that were read."""
        piece = self.file.read(min(len(target), PIECE))
        target[: len(piece)] = piece
        self.taken += len(piece)
        return len(piece)

    def close(self) -> None:
        self.file.close()
        super().close()


class _Entry(io.RawIOBase):
    """A file in a zip; every way in which it can be damaged is one of `BROKEN`."""

    def __init__(self, source: IO[bytes]):
        self.source = source

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """Bytes that were read."""
        try:
            piece = self.source.read(len(target))
        except (OSError, ValueError) as error:  # how bz2 calls a damaged file; places that are none
            raise EOFError(str(error)) from None
        target[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.source.close()
        super().close()


class _Frames(io.RawIOBase):
    """Unpacks all frames of a file; zstandard's own reader takes one that is cut off for a whole one."""

    def __init__(self, packed: _Packed, new: Callable[[], Any]):
        self.packed, self.new = packed, new
        self.frame: Any = None
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """Bytes that were read; raises `EOFError` where the file ends within a frame."""
        while not self.ready:
            piece = self.packed.read(PIECE)
            if not piece:
                if self.frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self.ready = memoryview(self._unpack(piece))
        count = min(len(target), len(self.ready))
        target[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def _unpack(self, piece: bytes) -> bytes:
        found = []
        while piece:
            self.frame = self.frame or self.new()
            try:
                found.append(self.frame.decompress(piece))
            except (OSError, lzma.LZMAError) as error:  # how bz2 and lzma call a damaged file
                raise EOFError(str(error)) from None
            piece = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame = None
        return b"".join(found)


class _Weighed(io.RawIOBase):
    """What comes out of a file that is unpacked, weighed against what goes in."""

    def __init__(self, source: Any, packed: _Packed):
        self.source, self.packed = source, packed
        self.given = 0  # of this window
        self.before = 0  # packed bytes that were taken before this window

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """Bytes that were read; raises `DataError` where they are too many."""
        count = self.source.readinto(target)
        self.given += count
        if self.given >= WINDOW:
            if self.given > EXPANSION * (self.packed.taken - self.before + PIECE):
                raise too_large(self.packed.path, "bytes")
            self.given, self.before = 0, self.packed.taken
        return count

    def close(self) -> None:
        self.packed.close()
        super().close()
