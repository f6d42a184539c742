"""Tables of every kind, and bad input of every kind: one clear message, the row named, the rest kept."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import polars
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from seqtune.data.files import open_table
from seqtune.data.sources import check_rejected_share, read_examples
from seqtune.errors import DataError
from seqtune.sections import DataConfig

ROWS = [("CCO", "ethanol"), ("C", "methane"), ('a "quoted", b', "x\ny"), ("北京", "½")]


def read(path, **settings):
    return read_examples(str(path), DataConfig(**settings))


def as_csv(delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([("input", "output"), *ROWS])
    return text.getvalue().encode()


def write_all_kinds(folder):
    frame = polars.DataFrame(ROWS, schema=["input", "output"], orient="row")
    frame.write_parquet(folder / "t.parquet")
    jsonl = "".join(json.dumps({"input": a, "output": b}) + "\n" for a, b in ROWS).encode()
    for name, content in (("t.csv", as_csv()), ("t.tsv", as_csv("\t")), ("t.jsonl", jsonl)):
        (folder / name).write_bytes(content)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        (folder / f"{name}.zst").write_bytes(zstandard.compress(content))
    (folder / "t.json").write_text(json.dumps([{"input": a, "output": b} for a, b in ROWS]))
    (folder / "t.csv.bz2").write_bytes(bz2.compress(as_csv()))
    (folder / "t.jsonl.xz").write_bytes(lzma.compress(jsonl))
    (folder / "t.parquet.gz").write_bytes(gzip.compress((folder / "t.parquet").read_bytes()))
    (folder / "bom.csv").write_bytes(b"\xef\xbb\xbf" + as_csv())
    return sorted(folder.iterdir())


def test_every_kind_reads_the_same(tmp_path):
    files = write_all_kinds(tmp_path)
    assert len(files) == 15
    for path in files:
        examples, rejected = read(path)
        assert [(e.input, e.output) for e in examples] == ROWS, path.name
        assert rejected == []


def test_lines_are_the_files_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(as_csv())
    assert [e.line for e in read(path)[0]] == [2, 3, 5, 6]  # row 3 spans two lines


def test_hub_address_reads_from_the_hubs_cache(tmp_path, monkeypatch):
    """The hub's own on-disk layout, offline: refs, snapshots."""
    root = tmp_path / "datasets--team--pairs"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc123")
    (root / "snapshots" / "abc123").mkdir(parents=True)
    (root / "snapshots" / "abc123" / "t.csv").write_bytes(as_csv())
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    import huggingface_hub

    real = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: real(*a, cache_dir=tmp_path, **k))
    examples, _ = read("hf://datasets/team/pairs/t.csv")
    assert len(examples) == 4
    with pytest.raises(DataError, match="cannot be fetched from the hub"):
        read("hf://datasets/team/pairs/absent.csv")
    with pytest.raises(DataError, match="write hf://datasets/OWNER/NAME"):
        read("hf://datasets/pairs")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", r"t.csv' is empty \(0 bytes\)"),
        ("t.csv", b"input,output\n", "no usable row"),
        ("t.csv", b"\n", "no header line"),
        ("t.csv", b"smiles,output\na,b\n", r"no column 'input', asked for by data.input"),
        ("t.csv", b"inputs,output\na,b\n", "did you mean 'inputs'"),
        ("t.csv", b"input output\na b\n", r"no column 'input', asked for by data.input; columns: input output"),
        ("t.txt", b"input output\na b\n", "nothing parts its lines into columns"),
        ("t.csv", b"input,input\na,b\n", "'input' appears twice"),
        ("t.csv", b'input,output\n"a,b\nc,d\n', r"line 3: unexpected end of data; if quote characters are plain text"),
        ("t.json", b'{"input": "a"}\n{"input": "b"}', "not JSON .*if each line is an object of its own, call it .jsonl"),
        ("t.json", b'{"input": "a"}', "holds a JSON dict; it needs a list of objects"),
        ("t.json", b"[1, 2]", "a list without any object"),
        ("t.jsonl", b"\n\n", "holds no rows"),
        ("t.jsonl", b"[1]\n", "a JSON list, not an object"),
        ("t.parquet", b"nonsense", "cannot be read as Parquet"),
        ("t.docx", b"x", "the ending '.docx' is unknown; allowed: .csv"),
        ("t.csv.gz", gzip.compress(as_csv() * 500)[:-30], r"gzip data is broken or cut off after line \d+"),
        ("t.csv.gz", b"plain text", "gzip data is broken or cut off after line 0"),
        ("t.csv.zst", b"plain text", "zstd data is broken"),
        ("t.csv.bz2", b"plain text", "bzip2 data is broken"),
        ("t.csv.xz", lzma.compress(as_csv() * 500)[:-30], r"xz data is broken or cut off after line \d+"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


TEXTS = {
    "cp1252": ("größer", "Äpfel, süß"),
    "utf-16": ("größer", "Äpfel, süß"),
    "utf-8-sig": ("größer", "Äpfel, süß"),
    "cp1251": ("Привет, большой мир", "собака лает громко"),
    "cp932": ("こんにちは世界", "東京は大きい町です"),
    "gb18030": ("你好世界，我们今天学习中文。", "北京是一个大城市，有很多人在那里工作和生活。"),
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_legacy_encoding_is_found_used_and_said(tmp_path, encoding):
    path = tmp_path / "t.csv"
    rows = [(f"{TEXTS[encoding][0]} {n}", TEXTS[encoding][1]) for n in range(3)]
    with path.open("w", encoding=encoding, newline="") as handle:
        csv.writer(handle).writerows([("input", "output"), *rows])
    examples, rejected = read(path)
    assert [(e.input, e.output) for e in examples] == rows
    assert not rejected
    notes = open_table(str(path), DataConfig()).dialect.notes
    assert [encoding.upper() in note.upper() for note in notes] == ([] if encoding == "utf-8-sig" else [True])
    named = DataConfig(encoding=encoding)
    assert not open_table(str(path), named).dialect.notes
    assert [e.input for e in read_examples(str(path), named)[0]] == [asked for asked, _ in rows]


def test_a_broken_row_makes_no_legacy_encoding_of_a_table_in_utf8(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("input,output\nschön,a\n".encode() + "schön,b\n".encode("cp1252"))
    examples, rejected = read(path)
    assert [e.input for e in examples] == ["schön"]
    assert [r.reason for r in rejected] == ["column 'input' is not valid UTF-8 (byte 0xf6)"]


def test_a_text_that_ends_within_a_character_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("input,output\na,b\n".encode("utf-16") + b"c")
    with pytest.raises(DataError, match=r"t.csv': the text cannot be read after line 0 \(.*truncated data\); it is cut off"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "input;output\na;b, c\n", "semicolons"),
        ("t.csv", "input\toutput\na\tb, c\n", "tabs"),
        ("t.tsv", 'input,output\na,"b, c"\n', "commas"),
        ("t.txt", "input|output\na|b, c\n", "bars"),
    ],
)
def test_a_separator_that_is_recognised_is_used_and_said(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    [example], _ = read(tmp_path / name)
    assert (example.input, example.output) == ("a", "b, c")
    assert open_table(str(tmp_path / name), DataConfig()).dialect.notes == (f"columns are parted by {said}",)


@pytest.mark.parametrize(("name", "sign"), [("t.txt", "\t"), ("t.csv", ";"), ("t.tsv", "\t")])
def test_a_table_without_a_header(tmp_path, name, sign):
    (tmp_path / name).write_text(f"a{sign}b\nc{sign}d\n")
    examples, _ = read(tmp_path / name, header=False)
    assert [(e.input, e.output, e.line) for e in examples] == [("a", "b", 1), ("c", "d", 2)]
    (tmp_path / name).write_text(f"a{sign}b{sign}c\n")
    assert open_table(str(tmp_path / name), DataConfig(header=False)).columns == ("1", "2", "3")


def test_lists_of_json_objects_and_objects_in_them(tmp_path):
    records = [{"input": "a", "data": {"src": {"text": "x"}, "tgt": 1.5}}, 3, {"input": "b", "data": {"src": {"text": "y"}}}]
    (tmp_path / "t.json").write_text(json.dumps(records))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for name in ("t.json", "t.jsonl"):
        assert open_table(str(tmp_path / name), DataConfig()).columns == ("input", "data.src.text", "data.tgt")
        examples, rejected = read_examples(str(tmp_path / name), DataConfig(output="data.src.text"))
        assert [(e.input, e.output, e.line) for e in examples] == [("a", "x", 1), ("b", "y", 3)]
        assert [(r.line, r.reason) for r in rejected] == [(2, "a JSON int, not an object")]


def test_missing_file_names_a_near_one(tmp_path):
    (tmp_path / "pairs.csv").write_text("x")
    with pytest.raises(DataError, match=r"does not exist; did you mean '.*/pairs.csv'"):
        read(tmp_path / "pair.csv")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a\xff,b\n", r"column 'input' is not valid UTF-8 (byte 0xff)"),
        (b"a,b\x00\n", "column 'output' holds a NUL byte"),
        (b"a,\n", "column 'output' is empty"),
        (b"   ,b\n", "column 'input' is empty"),
        (b"a\n", "1 cells where the header has 2"),
        (b"a,b,c\n", "3 cells where the header has 2"),
        (b"a," + b"x" * 10_000_000 + b"\n", "column 'output' has 10,000,000 characters"),
    ],
)
def test_bad_rows_are_named_and_the_rest_is_kept(tmp_path, row, reason):
    path = tmp_path / "t.csv"
    path.write_bytes(b"input,output\n" + b"c,d\n" * 3 + row + b"e,f\n")
    examples, rejected = read(path)
    assert len(examples) == 4
    assert [r.line for r in rejected] == [5]
    assert rejected[0].reason.startswith(reason)
    assert rejected[0].file == str(path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{bad", "not JSON"),
        ('{"output": "x"}', "column 'input' is missing"),
        ("3", "a JSON int"),
        ('{"input": "x", "output": NaN}', "column 'output' is empty"),
        ('{"input": -Infinity, "output": "y"}', "column 'input' is empty"),
        ('{"input": "x", "output": "a\\ud800b"}', "column 'output' holds U+D800 alone, half of a surrogate pair"),
        ('{"input": "\\udbff", "output": "x"}', "column 'input' holds U+DBFF alone"),
        ('{"input": "x", "output": "y", "other": "\\ude00\\ud83d"}', "column 'other' holds U+DE00 alone"),
        ('{"input": ' + "1" * 5000 + ', "output": "x"}', "not JSON (Exceeds the limit"),
        ('{"input": ' + "[" * 50_000 + "]" * 50_000 + ', "output": "x"}', "not JSON (maximum recursion depth"),
    ],
)
def test_bad_json_rows(tmp_path, row, reason):
    path = tmp_path / "t.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n' + row + '\n{"input": "c", "output": "d"}\n')
    examples, rejected = read(path)
    assert len(examples) == 2
    assert [r.line for r in rejected] == [2]
    assert reason in rejected[0].reason


def test_surrogate_pairs_nested_escapes_and_line_separators_are_text(tmp_path):
    rows = [
        {"input": "\U0001f600", "output": "b"},
        {"input": "a", "output": "b", "more": ["\ud800"]},
        {"input": "a\u2028b\x85c", "output": "b"},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=i < 2) + "\n" for i, row in enumerate(rows)), encoding="utf-8")
    examples, rejected = read(path)
    assert [e.input for e in examples] == ["\U0001f600", "a", "a\u2028b\x85c"]
    assert examples[1].fields["more"] == '["\\ud800"]'
    assert not rejected
    assert all(text.encode() for e in examples for text in e.fields.values())


def test_outer_blanks_of_outputs_go_because_answers_have_none(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("input,output\n a , b c\n", encoding="utf-8")
    (example,) = read(path)[0]
    assert (example.input, example.output) == (" a ", "b c")


def test_a_parquet_file_with_invalid_text_is_refused(tmp_path):
    offsets = pyarrow.array([0, 2, 4], pyarrow.int32()).buffers()[1]
    invalid = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"ok\xff\xfe")])
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"input": invalid, "output": ["a", "b"]}), path)
    with pytest.raises(DataError, match=r"t.parquet' cannot be read as Parquet: .*Invalid UTF8 sequence"):
        read(path)


def test_too_many_bad_rows_are_an_error(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"input,output\na,b\nc,\n")
    _, rejected = read(path)
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used, more than data.max_rejected = 0.05; first: .*line 3"):
        check_rejected_share(rejected[:1], 2, 0.05)
    check_rejected_share(rejected[:1], 2, 0.5)


def test_a_number_that_is_missing_is_no_text(tmp_path):
    path = tmp_path / "t.parquet"
    polars.DataFrame({"input": ["a", "b"], "output": [1.5, float("nan")]}).write_parquet(path)
    examples, rejected = read(path)
    assert [e.output for e in examples] == ["1.5"]
    assert [(r.line, r.reason) for r in rejected] == [(2, "column 'output' is empty")]
