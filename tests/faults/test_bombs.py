"""Small files that would fill the memory or never end: one clear error, within ten seconds and a gigabyte."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pytest
import zstandard
from pyarrow import parquet

from fuzz.seeds import as_xlsx, sheet_row

READERS = Path(__file__).parents[1] / "fuzz" / "readers.py"
SECONDS, PEAK_MIB = 10, 1000  # of processor time: tests share a machine
MIB = 2**20
TIMES = 8  # mebibytes that a bomb unpacks to; what is refused after 2 would be refused if it were gigabytes

# a mebibyte of it, what comes before, and the reader
PARTS = {
    "rows.csv": (b"a,b\n" * (MIB // 4), b"input,output\n"),
    "blanks.csv": (b"\n" * MIB, b"input,output\n"),
    "cell.csv": (b"a" * MIB, b"input,output\n"),
    "quoted.csv": (b"ab\n" * (MIB // 3), b'input,output\n"'),
    "cells.csv": (b"," * MIB, b"input,output\n"),
    "header.csv": (b"," * MIB, b""),
    "objects.jsonl": (b"{}\n" * (MIB // 3), b'{"input": "a", "output": "b"}\n'),
    "text.jsonl": (b"a" * MIB, b'{"input": "'),
    "lists.jsonl": (b"[]," * (MIB // 3), b'{"input": ['),
    "compounds.pubchem": (b"1" * MIB, b"1\tC\n"),
    "lines.pubchem-sdf": (b"> <A>\n" * (MIB // 6), b""),
    "line.pubchem-sdf": (b"a" * MIB, b"> <PUBCHEM_IUPAC_NAME>\n"),
    "text.documents": (b"a\n\n" * (MIB // 3), b""),
}


def packed(folder: Path, name: str, kind: str) -> Path:
    part, lead = PARTS[name]
    path = folder / f"{name}{kind}"
    with path.open("wb") as out:
        made = (
            gzip.GzipFile(fileobj=out, mode="wb")
            if kind == ".gz"
            else zstandard.ZstdCompressor().stream_writer(out, closefd=False)
        )
        with made:
            made.write(lead)
            for _ in range(TIMES):
                made.write(part)
    return path


def parquets(folder: Path) -> list[Path]:
    """One long text that many rows name; many rows of nothing; a long list; many columns."""
    long = pyarrow.DictionaryArray.from_arrays(pyarrow.repeat(pyarrow.scalar(0, pyarrow.int32()), 5_000), ["a" * MIB])
    same = pyarrow.repeat("a", 5_000_000)
    tables = {
        "dictionary": pyarrow.table({"input": long, "output": long}),
        "rows": pyarrow.table({"input": same, "output": same}),
        "list": pyarrow.table({"input": pyarrow.ListArray.from_arrays([0, len(same)], same), "output": ["a"]}),
        "page": pyarrow.table({"input": ["a" * (20 * MIB)], "output": ["a"]}),
        "columns": pyarrow.table({f"c{i}": ["a"] for i in range(20_000)}),
    }
    for name, table in tables.items():
        parquet.write_table(table, folder / f"{name}.parquet", compression="zstd", use_dictionary=name not in ("page",))
    return [folder / f"{name}.parquet" for name in tables]


def arrows(folder: Path) -> list[Path]:
    """As with Parquet; texts that are views of one; and a packed batch, in a file and in a stream."""
    same, long = pyarrow.repeat("a", 5_000_000), pyarrow.repeat(pyarrow.scalar(0, pyarrow.int32()), 5_000)
    views = struct.pack("<i4sii", MIB, b"aaaa", 0, 0) * 5_000
    view = pyarrow.Array.from_buffers(
        pyarrow.string_view(), 5_000, [None, pyarrow.py_buffer(views), pyarrow.py_buffer(b"a" * MIB)]
    )
    text = pyarrow.DictionaryArray.from_arrays(long, ["a" * MIB])
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(view)], pyarrow.int32()), view)
    tables = {
        "dictionary": pyarrow.table({"input": text, "output": text}),
        "nulls": pyarrow.table({"input": pyarrow.nulls(2**31 - 1), "output": pyarrow.nulls(2**31 - 1)}),
        "list": pyarrow.table({"input": pyarrow.ListArray.from_arrays([0, len(same)], same), "output": ["a"]}),
        "views": pyarrow.table({"input": view, "output": view}),
        "view-lists": pyarrow.table({"input": lists, "output": ["a"]}),
        "text": pyarrow.table({"input": ["a" * (20 * MIB)], "output": ["a"]}),
        "columns": pyarrow.table({f"c{i}": ["a"] for i in range(20_000)}),
    }
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    for name, table in tables.items():
        for kind, new in (("file", pyarrow.ipc.new_file), ("stream", pyarrow.ipc.new_stream)):
            with new(str(folder / f"{name}-{kind}.arrow"), table.schema, options=options) as writer:
                writer.write_table(table)
    return sorted(folder.glob("*.arrow"))


def zips(folder: Path) -> list[Path]:
    """A table that unpacks to much, and one that says it does not."""
    for name, (part, lead) in {"rows": PARTS["rows.csv"], "cell": PARTS["cell.csv"]}.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("t.csv", "w") as out:
            out.write(lead)
            for _ in range(TIMES):
                out.write(part)
    content = (folder / "rows.zip").read_bytes()
    size = (len(PARTS["rows.csv"][1]) + TIMES * MIB).to_bytes(4, "little")
    assert content.count(size) == 2
    (folder / "lie.zip").write_bytes(content.replace(size, (2000).to_bytes(4, "little")))
    return sorted(folder.glob("*.zip"))


def workbooks(folder: Path) -> list[Path]:
    """The last cell of a sheet; a row far behind; wide rows; markup that is nothing; a long text; entities."""
    head, last = sheet_row(1, "input", "output"), '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    wide = "".join(f'<row r="{i}"><c r="XFD{i}"><v>1</v></c></row>' for i in range(2, 40_000))
    books = {
        "last": head + last,
        "far": head + '<row r="99999999999999"><c r="A1"><v>1</v></c></row>',
        "wide": head + wide,
        "empty": head + "<a/>" * (7 * MIB),
        "text": head + sheet_row(2, "a" * (65 * MIB), "b"),
        "rows": head + "<row/>" * (2 * MIB),
    }
    for name, cells in books.items():
        (folder / f"{name}.xlsx").write_bytes(as_xlsx(cells, zipfile.ZIP_STORED if name == "empty" else zipfile.ZIP_DEFLATED))
    return sorted(folder.glob("*.xlsx"))


def plain(folder: Path) -> list[str]:
    """Not packed, and yet far larger in memory than on disk."""
    wide = folder / "wide.jsonl"
    wide.write_text(json.dumps({f"c{i}": "" for i in range(300_000)}) + "\n" + "{}\n" * 8000)
    bad = folder / "bad.csv"
    bad.write_bytes(b"input,output\n" + b"a\n" * 1_200_000)
    laughs = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{y}: &{y} [{', '.join([f'*{x}'] * 8)}]\n" for x, y in zip("abcdefghi", "bcdefghij", strict=True)
    )
    (folder / "laughs.yaml").write_text(laughs + "train: {seed: *j}\n")
    merges = "a: &a {k: 1}\n" + "".join(
        f"{y}: &{y} {{<<: [{', '.join([f'*{x}'] * 8)}]}}\n" for x, y in zip("abcdefghi", "bcdefghij", strict=True)
    )
    (folder / "merges.yaml").write_text(merges)
    header = b'{"' + b" " * 17 * MIB + b'":0}'
    (folder / "header.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "index.index").write_text('{"weight_map": ' + "[" * 1000 + "}")
    with (
        zipfile.ZipFile(folder / "copy.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/predictions.jsonl", "w") as out,
    ):
        for _ in range(TIMES):
            out.write(b" " * MIB)
    kinds = {"wide.jsonl": "jsonl", "bad.csv": "csv", "laughs.yaml": "config", "merges.yaml": "config",
             "header.safetensors": "safetensors", "index.index": "index", "copy.zip": "archive"}  # fmt: skip
    return [f"{kind}={folder / name}" for name, kind in kinds.items()]


def outcomes(arguments: list[str], folder: Path) -> list[dict]:
    environment = os.environ | {"SEQTUNE_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(READERS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def broken(found: list[dict]) -> list[dict]:
    """The readers that took too long or too much, or did not refuse."""
    return [f for f in found if f["seconds"] > SECONDS or f["peak_mib"] > PEAK_MIB or "Error: " not in f["said"]]


@pytest.mark.parametrize(
    "names",
    [["quoted.csv", "lists.jsonl", "line.pubchem-sdf"], pytest.param(list(PARTS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_packed_files_that_fill_the_memory(tmp_path, names):
    asked = [f"{name.partition('.')[2]}={packed(tmp_path, name, kind)}" for name in names for kind in (".gz", ".zst")]
    found = outcomes(asked, tmp_path)
    assert (len(found), broken(found)) == (len(asked), [])


def test_parquet_files_that_fill_the_memory(tmp_path):
    asked = [f"parquet={path}" for path in parquets(tmp_path)]
    found = outcomes(asked, tmp_path)
    assert (len(found), broken(found)) == (len(asked), [])


@pytest.mark.parametrize("kind", ["arrow", "zip", "xlsx"])
def test_other_packed_tables_that_fill_the_memory(tmp_path, kind):
    if kind == "xlsx":
        pytest.importorskip("openpyxl")
    made = {"arrow": arrows, "zip": zips, "xlsx": workbooks}[kind](tmp_path)
    found = outcomes([f"{kind}={path}" for path in made], tmp_path)
    assert (len(found), broken(found)) == (len(made), [])


def test_plain_files_that_fill_the_memory(tmp_path):
    asked = plain(tmp_path)
    found = outcomes(asked, tmp_path)
    assert (len(found), broken(found)) == (len(asked), [])
