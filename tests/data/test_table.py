"""Rows in columns give what rows one by one give: the same examples, reasons, splits and counts, in flat memory."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import polars
import pytest

from seqtune.data import files, kept, sources, table
from seqtune.data.sources import read_examples
from seqtune.data.splits import hash_order, leakage, split_examples, subset
from seqtune.data.table import BLANKS, batches, texts
from seqtune.records import Example
from seqtune.sections import DataConfig, SplitConfig

COUNT = 60
KINDS = ["t.csv", "t.tsv", "t.csv.gz", "t.jsonl", "t.parquet"]


@pytest.fixture(params=["memory", "cache"])
def small_frames(request, tmp_path, monkeypatch):
    """Frames of seven rows, so that files have many borders; in memory or in the cache."""
    for module in (files, table):
        monkeypatch.setattr(module, "FRAME_ROWS", 7)
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "CACHE_BYTES", 0 if request.param == "cache" else 2**30)
    return request.param


def records():
    draw = random.Random(0)
    return [
        {
            "input": draw.choice(["C", "N", "é", "x"]) * draw.randrange(1, 40),
            "output": f" out {draw.randrange(20)}\u00a0",
            "group": str(draw.randrange(9)),
            "side": draw.choice(["train", "Training ", "dev", "test"]),
        }
        for _ in range(COUNT)
    ]


def write(path, rows):
    if path.name.endswith(".parquet"):
        polars.DataFrame(rows).write_parquet(path)
    elif path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
        with opened as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path, **settings):
    return read_examples(str(path), DataConfig(**settings))


def reference(path, rows):
    """The rows of a file, each made by itself."""
    first = 1 if path.suffix in (".parquet", ".jsonl") else 2
    return [Example(str(i), row["input"], row["output"], row, str(path), i) for i, row in enumerate(rows, start=first)]


@pytest.mark.parametrize("name", KINDS)
def test_a_table_is_the_sequence_of_its_examples(name, small_frames, tmp_path):
    path = write(tmp_path / name, records())
    expected = reference(path, records())
    for _ in range(2):  # a second time from what is kept, if anything is
        found, rejected = read(path)
        assert not rejected
        assert list(found) == expected
        assert [found[i] for i in range(-COUNT, COUNT)] == expected + expected
        assert list(found[5:50:3]) == expected[5:50:3]
        assert list(found[10:40][3:]) == expected[13:40]
        assert [len(part) for part in (found, found[3:20], found[20:3])] == [COUNT, 17, 0]
        assert list(texts(found[9:30], "input")) == [e.input for e in expected[9:30]]
        with pytest.raises(IndexError):
            found[COUNT]


def hash_side(text, config):
    digest = hashlib.blake2b(f"split\0{config.seed}\0{text}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return "test" if share < config.test else "validation" if share < config.test + config.validation else "train"


def ranked(values, config):
    order = sorted(range(len(values)), key=lambda i: values[i])
    num_test, num_validation = round(config.test * len(values)), round(config.validation * len(values))
    names = ["test"] * num_test + ["validation"] * num_validation + ["train"] * len(values)
    return {row: names[rank] for rank, row in enumerate(order)}


def reference_sides(rows, config):
    """Splits as their documentation says, a row at a time."""
    if config.method in ("hash", "grouped"):
        return [hash_side(e.input if config.method == "hash" else e.fields["group"], config) for e in rows]
    if config.method == "column":
        known = {"train": "train", "training": "train", "dev": "validation", "test": "test"}
        return [known[e.fields["side"].strip().lower()] for e in rows]
    if config.method == "random":
        found = ranked(np.random.default_rng(config.seed).random(len(rows)).tolist(), config)
        return [found[i] for i in range(len(rows))]
    sides = [""] * len(rows)
    for band in {len(e.input).bit_length() for e in rows}:
        inside = [i for i, e in enumerate(rows) if len(e.input).bit_length() == band]
        hashes = [
            int.from_bytes(hashlib.blake2b(f"split\0{config.seed}\0{rows[i].input}".encode(), digest_size=8).digest(), "big")
            for i in inside
        ]
        for place, side in ranked(hashes, config).items():
            sides[inside[place]] = side
    return sides


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("method", ["hash", "grouped", "stratified", "random", "column"])
def test_splits_of_columns_are_those_of_rows(name, method, small_frames, tmp_path):
    key = {"grouped": "group", "column": "side"}.get(method)
    config = SplitConfig(method=method, key=key, test=0.3, validation=0.2, seed=5)
    path = write(tmp_path / name, records())
    rows = reference(path, records())
    found = split_examples(read(path)[0], config)
    sides = reference_sides(rows, config)
    for side in found:
        assert list(found[side]) == [e for e, own in zip(rows, sides, strict=True) if own == side]
    assert {side: list(part) for side, part in found.items()} == split_examples(rows, config)


def test_subsets_orders_and_leakage_of_columns_are_those_of_rows(small_frames, tmp_path):
    path = write(tmp_path / "t.csv", records())
    found, rows = read(path)[0], reference(path, records())
    assert hash_order(found, 3, "x").tolist() == hash_order(rows, 3, "x").tolist()
    assert list(subset(found, 11, 2)) == subset(rows, 11, 2)
    config = SplitConfig(method="random", test=0.4, validation=0.2)
    dealt = split_examples(found, config)
    seen = {
        "same_input": lambda e: e.input,
        "same_normalized_input": lambda e: " ".join(e.input.split()).casefold(),
        "same_output": lambda e: e.output,
        "same_pair": lambda e: (e.input, e.output),
        "same_key": lambda e: e.fields["group"],
    }
    train = {name: {view(e) for e in dealt["train"]} for name, view in seen.items()}
    for side, counts in leakage(dealt, "group").items():
        assert counts == {"rows": len(dealt[side])} | {
            name: sum(view(e) in train[name] for e in dealt[side]) for name, view in seen.items()
        }
    assert leakage(dealt, "group") == leakage(split_examples(rows, config), "group")


@pytest.mark.parametrize("border", range(12, 17))
def test_bad_rows_are_named_exactly_at_every_border(border, small_frames, tmp_path):
    """Each kind of bad row at, before and after the border of a frame, beside a row of two lines and an empty line."""
    lines = [f"in {i},out {i}".encode() for i in range(40)]
    bad = [b"a\xff,b", b"only one", b"x,", b"n,\x00", b"a,b,c"]
    lines[border : border + 5] = bad
    lines[3], lines[30] = b'"two\nlines",out', b""
    path = tmp_path / "t.csv"
    path.write_bytes(b"input,output\n" + b"\n".join(lines) + b"\n")
    found, rejected = read(path)
    assert [(r.line, r.reason.split(" (")[0]) for r in rejected] == [
        (border + 3, "column 'input' is not valid UTF-8"),
        (border + 4, "1 cells where the header has 2"),
        (border + 5, "column 'output' is empty"),
        (border + 6, "column 'output' holds a NUL byte"),
        (border + 7, "3 cells where the header has 2"),
    ]
    expected = [i + 2 + (i >= 3) for i in range(40) if not border <= i < border + 5 and i != 30]
    assert [e.line for e in found] == expected
    assert found[3].input == "two\nlines"


def test_json_rows_keep_the_columns_that_only_they_have(small_frames, tmp_path):
    rows = [{"input": f"i{i}", "output": "o"} | ({"more": i, "none": None} if i % 5 == 0 else {}) for i in range(30)]
    rows[9]["odd"] = "\ud800"
    del rows[20]["output"]
    found, rejected = read(write(tmp_path / "t.jsonl", rows))
    assert [(r.line, r.reason.split(",")[0]) for r in rejected] == [
        (10, "column 'odd' holds U+D800 alone"),
        (21, "column 'output' is missing"),
    ]
    assert found[5].fields == {"input": "i5", "output": "o", "more": "5", "none": ""}
    assert found[6].fields == {"input": "i6", "output": "o"}


def test_a_changed_file_or_setting_is_read_anew(small_frames, tmp_path):
    path = write(tmp_path / "t.csv", records())
    read(path)
    changed = [row | {"output": "z"} for row in records()]
    assert {e.output for e in read(write(path, changed))[0]} == {"z"}
    assert {e.input for e in read(path, input="group", output="side")[0]} == {row["group"] for row in records()}
    assert [e.id for e in read(path, id="group")[0]] == [row["group"] for row in records()]
    assert len(read(path, max_cell_characters=20)[1]) == sum(len(row["input"]) > 20 for row in records())


def test_what_cannot_be_kept_is_read_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(sources, "CACHE_BYTES", 0)
    assert len(read(write(tmp_path / "t.csv", records()))[0]) == COUNT
    assert kept.fact("key", lambda: [1]) == [1]
    assert kept.array("key", lambda: np.arange(3)).tolist() == [0, 1, 2]


def test_facts_and_arrays_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path))
    calls = Counter()
    for _ in range(2):
        assert kept.fact("a", lambda: calls.update("f") or {"x": [1]}) == {"x": [1]}
        assert kept.array("a", lambda: calls.update("a") or np.arange(3)).tolist() == [0, 1, 2]
        assert kept.fact(None, lambda: calls.update("n") or 7) == 7
    assert calls == {"f": 1, "a": 1, "n": 2}


def test_blanks_are_those_of_python():
    assert all((chr(code) in BLANKS) == chr(code).isspace() for code in range(sys.maxunicode + 1))


def test_columns_of_plain_examples_are_those_of_a_table():
    rows = [Example("7", "a", " b ", {"k": "v"}, "f", 3), Example("8", "c", None, {"k": "w"}, "f", 4)]
    frame = next(batches(rows, "id", "input", "output", "line", "file", "context", "field.k"))
    assert frame.rows() == [("7", "a", "b", 3, "f", None, "v"), ("8", "c", None, 4, "f", None, "w")]


MEMORY = """
import sys
from seqtune.sections import DataConfig, SplitConfig
from seqtune.data.sources import read_examples
from seqtune.data.splits import leakage, split_examples

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

read_examples(sys.argv[1], DataConfig())
before = peak()
rows, _ = read_examples(sys.argv[2], DataConfig())
dealt = split_examples(rows, SplitConfig())
leakage(dealt)
assert sum(1 for _ in dealt["train"]) == len(dealt["train"])
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat(tmp_path):
    """200,000 rows of 90 characters, which took 580 MB as a list of examples."""
    for name, count in (("small.csv", 5_000), ("large.csv", 200_000)):
        lines = (f"{'C' * 40}{i:07d},{'x' * 33}{i:07d}\n" for i in range(count))
        (tmp_path / name).write_text("input,output\n" + "".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "small.csv"), str(tmp_path / "large.csv")],
        capture_output=True, text=True, check=True, env={**os.environ, "SEQTUNE_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert float(done.stdout) < 40, "MiB"
