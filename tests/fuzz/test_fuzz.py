"""Damaged and odd files for every reader: each is read, or refused with one of our own errors.

Short here and always the same; `make fuzz MINUTES=60` goes on with other numbers for so long with each reader, and prints counts.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.readers import READERS, outcome
from fuzz.seeds import ROWS, as_jsonl, seeds

MINUTES = float(os.environ.get("SEQTUNE_FUZZ_MINUTES", "0"))
EXAMPLES = 20
SLOWEST = 10  # seconds of the processor
REFUSED = (("documents", "d.txt.gz"), ("saved", "state.json"))  # seeds that are too little
CORPUS = Path(__file__).with_name("corpus")  # what once was a broken promise: READER/NAME
PIECES = (
    b"\0", b"\xff", b"\xc2\xb2", b"\xed\xa0\x80", b"\r", b"\n", b'"', b"'", b",", b"\t", b"{", b"}", b"[", b"]", b":", b"-", b"&a ",
    b"*a", b"!!x ", b"<<: ", b"null", b"true", b"NaN", b"-1", b"1e999", b"9" * 20, b"9" * 5000, b"2024-13-45", b"[" * 2000, b"\\ud800",
    b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b"\x01\x00\x00\x00", b"a" * 300, b"$$$$\n", b"> <", b"{input}", b"../x",
)  # fmt: skip

piece = st.one_of(st.sampled_from(PIECES), st.binary(max_size=6))
edit = st.tuples(st.sampled_from(["put", "insert", "cut", "repeat", "end"]), st.floats(0, 1), st.floats(0, 0.3), piece)


def edited(content: bytes, edits: list) -> bytes:
    """A content with some of its bytes replaced, added, removed or repeated."""
    for kind, place, length, new in edits:
        at = int(place * len(content))
        end = at + max(1, int(length * (len(content) - at)))
        content = {
            "put": content[:at] + new + content[at + len(new) :],
            "insert": content[:at] + new + content[at:],
            "cut": content[:at] + content[end:],
            "repeat": content[:at] + content[at:end] * 3 + content[end:],
            "end": content[:at],  # the rest is cut off
        }[kind]
    return content


def look(name: str, files: list[tuple[str, bytes]], folder: Path, examples: int, number: int) -> Counter[str]:
    """Give a reader so many damaged files; returns how many it read and how many it refused."""
    counts: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.sampled_from(files), st.lists(edit, min_size=1, max_size=5))
    def promise(file: tuple[str, bytes], edits: list) -> None:
        path = folder / file[0]
        path.write_bytes(edited(file[1], edits))
        found = outcome(name, path)
        assert not found["said"].startswith("broken promise"), found
        assert found["seconds"] < SLOWEST, found
        counts["read" if found["said"] == "read" else "refused"] += 1

    promise()
    return counts


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    if name == "gguf":
        pytest.importorskip("gguf")
    if name == "xlsx":
        pytest.importorskip("openpyxl")
    files, counts = seeds()[name], Counter()
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(ROWS))  # which task bundles name
    for file, content in files:  # whole, they are read
        (tmp_path / file).write_bytes(content)
        assert outcome(name, tmp_path / file)["said"] == "read" or (name, file) in REFUSED
    counts += look(name, files, tmp_path, EXAMPLES, 0)
    end, number = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < end:
        number += 1
        counts += look(name, files, tmp_path, 200, number)
    print(f"\n{name}: {counts.total():,} files, {counts['read']:,} read, {counts['refused']:,} refused, 0 broken promises")


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*/*")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_once_was_a_broken_promise(file, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    assert not outcome(file.parent.name, file)["said"].startswith("broken promise")
