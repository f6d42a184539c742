"""Large files from a server: resumable, and checked against the server's size and MD5."""

from __future__ import annotations

import hashlib
import re
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.request import Request, urlopen

from seqtune.errors import DataError
from seqtune.progress import Tick, silent

PUBCHEM = "https://ftp.ncbi.nlm.nih.gov/pubchem/Compound/Extras/"
CHUNK = 2**20
TIMEOUT = 60.0  # seconds without a byte
LONGEST_NOTE = 4096  # bytes of a checksum and a name


def fetch(url: str, folder: Path, tick: Tick = silent) -> Path:
    """Download a file unless it is there already; a broken download goes on where it stopped.

    Args:
        url: the file; `url.md5` holds its checksum (`<hex>  <name>`).
        folder: where to keep it.
        tick: told the share that is done.

    Raises:
        DataError: the server cannot be reached, or what arrived is not what it has.
    """
    final = folder / url.rpartition("/")[2]
    if final.exists():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    part = final.with_name(final.name + ".part")
    try:
        with urlopen(url + ".md5", timeout=TIMEOUT) as answer:
            checksum = _md5_in(answer.read(LONGEST_NOTE))
        _receive(url, part, tick)
    except (OSError, HTTPException, ValueError) as error:  # HTTP errors and refused connections are OSErrors
        raise DataError(
            f"{url} cannot be downloaded: {error}; the same command goes on where it stopped, "
            "or name local copies with --smiles-file and --names-file"
        ) from None
    with part.open("rb") as handle:
        found = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != checksum:
        part.unlink()
        raise DataError(f"{url}: what arrived has MD5 {found}, the server says {checksum}; start the download again")
    part.replace(final)
    return final


def _md5_in(note: bytes) -> str:
    """The checksum in a note `<hex>  <name>`."""
    found = re.match(rb"\s*([0-9a-fA-F]{32})\b", note)
    if found is None:
        raise ValueError(f"its .md5 holds no checksum but {note[:40]!r}")
    return found[1].decode().lower()


def _length_in(headers: Message) -> int:
    """The length that a server announces."""
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit()):
        raise ValueError(f"the server does not say how long it is (Content-Length: {length[:20]!r})")
    return int(length)


def _receive(url: str, part: Path, tick: Tick) -> None:
    done = part.stat().st_size if part.exists() else 0
    with urlopen(Request(url, method="HEAD"), timeout=TIMEOUT) as answer:
        size = _length_in(answer.headers)
    if done == size:
        return
    if done > size:  # of another file than the server has now
        part.unlink()
        done = 0
    with urlopen(Request(url, headers={"Range": f"bytes={done}-"}), timeout=TIMEOUT) as answer:
        begins_here = answer.headers.get("Content-Range", f"bytes {done}-").startswith(f"bytes {done}-")
        if answer.status != HTTPStatus.PARTIAL_CONTENT or not begins_here:  # a server that starts over
            done = 0
        if done + _length_in(answer.headers) != size:
            raise ValueError(f"the server said {size:,} bytes, and sends {done + _length_in(answer.headers):,}")
        with part.open("ab" if done else "wb") as out:
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                done += len(chunk)
                tick(done / size)
    if done != size:
        raise IncompleteRead(b"", size - done)
