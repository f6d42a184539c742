"""What people and programs write into settings, tables and predictions: a clear error or the right thing, never a traceback."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter

import pytest
import zstandard

from fuzz.readers import outcome
from seqtune.chem import pubchem, sdf
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.data.sources import read_examples
from seqtune.errors import ConfigError, DataError
from seqtune.records import Prediction
from seqtune.report.answer_table import write_answer_table
from seqtune.scoring.evaluate import read_predictions
from seqtune.sections import DataConfig
from seqtune.yaml_files import parse_override, read_yaml_mapping


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 5000, "a: 2024-13-45", "a: !!python/object:os.system x", "a: \udcff", "a: &x [*x, *y]"]
)
def test_yaml_that_cannot_be_read(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_yaml_mapping(file, "config")


@pytest.mark.parametrize("value", ["[" * 5000, "2024-13-45", "!!python/object:os.system x"])
def test_a_value_that_is_no_yaml(value):
    with pytest.raises(ConfigError, match="the value is not YAML"):
        parse_override(f"train.epochs={value}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.seed", -1), ("train.seed", 2**63), ("data.split.seed", -1), ("train.epochs", 1e30), ("train.epochs", float("inf")),
        ("train.learning_rate", float("inf")), ("train.learning_rate", float("nan")), ("train.max_minutes", float("inf")),
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_be_done_with(key, value):
    with pytest.raises(ConfigError, match=f"{key} = "):
        load_config(overrides={key: value})


@pytest.mark.parametrize("score", ["abc", [1], {"a": 1}])
def test_a_score_that_is_no_number(tmp_path, score):
    file = tmp_path / "predictions.jsonl"
    file.write_text(json.dumps({"id": "1", "prediction": "a", "reference": "a", "score": score}) + "\n")
    with pytest.raises(DataError, match="line 1: 'score'"):
        read_predictions(str(file))


def test_a_table_for_spreadsheets_holds_no_formulas(tmp_path):
    texts = ["=1+1", "+1", "-2.5", "@SUM(A1)", "-cmd|' /C calc'!A0", "\tx", "CC=O", "-"]
    rows = [Prediction(str(i), t, None, t, -1.5, (), "ok", {"verdict": t}) for i, t in enumerate(texts)]
    write_answer_table(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="") as handle:
        read = list(csv.DictReader(handle))
    safe = ["'=1+1", "+1", "-2.5", "'@SUM(A1)", "'-cmd|' /C calc'!A0", "'\tx", "CC=O", "'-"]
    assert [row["prediction"] for row in read] == [row["verdict"] for row in read] == safe
    assert {row["log_probability"] for row in read} == {"-1.5000"}
    write_answer_table(tmp_path / "b.tsv", rows, escape=False)
    with (tmp_path / "b.tsv").open(newline="") as handle:
        assert [row["prediction"] for row in csv.DictReader(handle, delimiter="\t")] == texts


def test_predict_writes_such_a_table(run, tmp_path, monkeypatch):
    monkeypatch.setattr("seqtune.data.templates.Template.answer", lambda *_: "=HYPERLINK(1)")
    for flag, expected in (([], "'=HYPERLINK(1)"), (["--no-escape"], "=HYPERLINK(1)")):
        assert run_app(["predict", str(run), "100", "--out", str(tmp_path / "a.csv"), *flag]) == 0
        assert expected in next(csv.reader((tmp_path / "a.csv").open().readlines()[1:]))


NOISE = "".join(random.Random(0).choices("abcdefgh\n", k=400_000)).encode()


@pytest.mark.parametrize("cut", [0.2, 0.9, 0.99999])
@pytest.mark.parametrize(("kind", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_a_packed_table_that_is_cut_off(tmp_path, kind, pack, cut):
    content = pack(b"input\n" + NOISE)
    file = tmp_path / f"table.csv.{kind}"
    file.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(
        DataError, match=f"the {kind.replace('gz', 'gzip').replace('zst', 'zstd')} data is broken or cut off after line"
    ):
        read_examples(str(file), DataConfig(), need_output=False)


def test_a_table_packed_in_several_pieces_is_read_to_its_end(tmp_path):
    for kind, pack in (("gz", gzip.compress), ("zst", zstandard.compress)):
        file = tmp_path / f"table.csv.{kind}"
        file.write_bytes(pack(b"input\na\n") + pack(b"") + pack(b"b\n" * 1000))
        assert len(read_examples(str(file), DataConfig(), need_output=False)[0]) == 1001


def test_damaged_gzip_of_compounds(tmp_path):
    packed = gzip.compress(b"1\tC\n" * 1000 + NOISE)
    for number in range(len(packed)):
        if number > 40 and number % 5000:
            continue
        file = tmp_path / "CID-SMILES.gz"
        file.write_bytes(packed[:number] + bytes([packed[number] ^ 0xFF]) + packed[number + 1 :])
        for name in ("pubchem", "pubchem-sdf"):
            assert not outcome(name, file)["said"].startswith("broken"), number


RECORD = b"> <PUBCHEM_COMPOUND_CID>\n%b\n\n> <PUBCHEM_SMILES>\nC\n\n> <PUBCHEM_IUPAC_NAME>\n%b\n\n$$$$\n"


def test_fields_of_structure_data_that_are_no_text_and_numbers_that_are_none(tmp_path):
    file = tmp_path / "compounds.sdf"
    odd = [b"\xc2\xb2", b"4294967296", b"-1", b"1" * 5000, b"\xff"]
    file.write_bytes(b"> <\xff\xfe>\n\xff\n" + RECORD % (b"7", b"meth\xffane") + b"".join(RECORD % (cid, b"a") for cid in odd))
    counts: Counter[str] = Counter()
    assert [frame.rows() for frame in sdf.frames([file], "preferred", counts)] == [[(7, "C", "meth\ufffdane")]]
    assert counts["no SMILES or no preferred name"] == len(odd)


def test_compounds_whose_number_is_none(tmp_path):
    file = tmp_path / "CID-SMILES"
    file.write_text("1\tC\n²\tCC\n")
    with pytest.raises(DataError, match="not lines of CID"):
        list(pubchem.joined(file, file, Counter()))


def test_numbers_of_thousands_of_digits(tmp_path):
    file = tmp_path / "table.jsonl"
    file.write_text('{"input": "a"}\n{"input": ' + "1" * 5000 + "}\n")
    rows, rejected = read_examples(str(file), DataConfig(), need_output=False)
    assert len(rows) == 1
    assert "4300 digits" in rejected[0].reason


def test_a_column_whose_name_is_no_text(tmp_path):
    for name, content in (("t.csv", b"input,\xff\nsch\xc3\xb6n,b\n"), ("t.jsonl", b'{"input": "a", "\\ud800": 1}\n')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="the column name .* rename it"):
            read_examples(str(tmp_path / name), DataConfig(), need_output=False)


@pytest.mark.parametrize("content", [b"prediction,reference\n" + b"a" * 200_000 + b",b\n", b"prediction,reference\ra\rb\n\rc"])
def test_predictions_that_are_no_table(tmp_path, content):
    (tmp_path / "p.csv").write_bytes(content)
    assert not outcome("predictions", tmp_path / "p.csv")["said"].startswith("broken")


def test_a_label_is_no_formula():
    from seqtune.report.parts import new_axes, svg

    figure, _ = new_axes(r"$\frac{{$", "$x$")
    assert r"$\frac{{$" in svg(figure)


@pytest.mark.parametrize(("kind", "pack"), [("gz", gzip.compress), ("zst", lambda content: zstandard.compress(content, 12))])
def test_a_table_that_repeats_a_long_text_in_every_row_is_none_that_fills_the_memory(tmp_path, kind, pack):
    rng = random.Random(1)
    instruction = "".join(rng.choices("abcdefgh ", k=8000))
    rows = [
        {"system": instruction, "input": f"{rng.getrandbits(64):x}", "output": f"{rng.getrandbits(64):x}"} for _ in range(1000)
    ]
    file = tmp_path / f"table.jsonl.{kind}"
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(pack(content))
    assert len(content) > 90 * file.stat().st_size
    assert len(read_examples(str(file), DataConfig())[0]) == 1000
