"""Tables that are no text: workbooks, Arrow, archives, saved data sets, the hub, and frames in memory."""

from __future__ import annotations

import datetime
import json
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas
import polars
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

import seqtune
from conftest import pairs
from fuzz.seeds import as_xlsx, sheet_row
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.data.columns import with_columns
from seqtune.data.files import open_table
from seqtune.data.frames import name_of, settings_of
from seqtune.data.sources import read_examples, said_of
from seqtune.errors import DataError, MissingDependencyError
from seqtune.sections import DataConfig

ROWS = [("CCO", "ethanol"), ("a, b", "x\ny"), ("北京", "½")]
FRAME = polars.DataFrame(ROWS, schema=["input", "output"], orient="row")


def read(path, **settings):
    found, rejected = read_examples(str(path), DataConfig(**settings))
    return [(row.input, row.output) for row in found], rejected


def save(folder: Path, frame: polars.DataFrame, shards: int) -> Path:
    """What `datasets.save_to_disk` leaves, less what nobody needs."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
    for name, rows in zip(names, np.array_split(np.arange(len(frame)), shards), strict=True):
        frame[rows].write_ipc_stream(folder / name)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("packing", [None, "zstd", "lz4"])
def test_arrow_files_and_streams_of_two_libraries(tmp_path, packing):
    table, options = FRAME.to_arrow(), pyarrow.ipc.IpcWriteOptions(compression=packing)
    for name, new in (("a.arrow", pyarrow.ipc.new_file), ("b.feather", pyarrow.ipc.new_stream)):
        with new(str(tmp_path / name), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=2)
    FRAME.write_ipc(tmp_path / "c.arrow", compression=packing or "uncompressed")
    FRAME.write_ipc_stream(tmp_path / "d.arrow", compression=packing or "uncompressed")
    FRAME.cast(polars.Categorical).write_ipc(tmp_path / "e.arrow")
    for path in sorted(tmp_path.iterdir()):
        assert read(path) == (ROWS, []), path.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"FEA1....", "is Feather of version 1"),
        (b"ARROW1\0\0 and nothing else", "cannot be read as Arrow"),
        (b"nonsense", "cannot be read as Arrow"),
    ],
)
def test_what_is_no_arrow_file(tmp_path, content, message):
    (tmp_path / "t.arrow").write_bytes(content)
    with pytest.raises(DataError, match=f"t.arrow' {message}"):
        read(tmp_path / "t.arrow")


def test_a_zip_with_one_table(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../deep/t.csv", FRAME.write_csv())
        archive.writestr("__MACOSX/._t.csv", b"\0")
        archive.writestr("README.md", b"about")
    assert read(tmp_path / "t.zip") == (ROWS, [])
    assert [path.name for path in tmp_path.iterdir()] == ["t.zip"]
    with zipfile.ZipFile(tmp_path / "t.zip", "a") as archive:
        archive.writestr("b.jsonl", "{}")
    with pytest.raises(DataError, match=r"holds 2 tables: ../../deep/t.csv, b.jsonl; pack exactly one, or unpack it"):
        read(tmp_path / "t.zip")
    zipfile.ZipFile(tmp_path / "none.zip", "w").close()
    with pytest.raises(DataError, match=r"none.zip' holds no table \(.csv"):
        read(tmp_path / "none.zip")


def test_a_workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Pairs"
    for row in [["name", "value", "more"], [], ["CCO", 1.5, None], ["b", datetime.datetime(2024, 2, 1), "x"], ["c", "#N/A"]]:
        book.active.append(row)
    book.create_sheet("Other").append(["input", "output"])
    book["Other"].append(["a", True])
    book.save(tmp_path / "t.xlsx")
    asked = {"input": "name", "output": "value"}
    found, rejected = read(tmp_path / "t.xlsx", **asked)
    assert found == [("CCO", "1.5"), ("b", "2024-02-01")]
    assert [(bad.line, bad.reason) for bad in rejected] == [(5, "column 'value' is empty")]
    assert said_of(str(tmp_path / "t.xlsx"), DataConfig(**asked)) == [
        "sheet 'Pairs' of 'Pairs', 'Other'; data.sheet names another one"
    ]
    assert read(tmp_path / "t.xlsx", sheet="Other") == ([("a", "True")], [])
    with pytest.raises(DataError, match="no column 'input'.*; sheet 'Pairs' of 'Pairs', 'Other'; data.sheet names another one"):
        read(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="has no sheet 'pairs', asked for by data.sheet; did you mean 'Pairs'"):
        read(tmp_path / "t.xlsx", sheet="pairs")


def test_a_workbook_that_others_wrote(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    path.write_bytes(as_xlsx(sheet_row(3, "input", "output") + sheet_row(7, "a", "b") + sheet_row(8, "c", "d", "e")))
    found, rejected = read(path)
    assert found == [("a", "b")]
    assert [(bad.line, bad.reason) for bad in rejected] == [(8, "3 cells where the header has 2")]
    path.write_bytes(as_xlsx(sheet_row(1, "", "b") + sheet_row(2, "a", "b")))
    assert open_table(str(path), DataConfig()).columns == ("column 1", "b")
    assert read(path, header=False)[0] == [("a", "b")]
    path.write_bytes(b"PK nonsense")
    with pytest.raises(
        DataError,
        match="t.xlsx' cannot be read as a workbook: File is not a zip file; if a program opens it, it has a password",
    ):
        read(path)


def test_other_workbooks_and_a_missing_package_say_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "t.ods").write_bytes(b"x")
    with pytest.raises(DataError, match=r"the ending '.ods' is unknown; save the sheet as .xlsx or .csv; allowed: .csv"):
        read(tmp_path / "t.ods")
    (tmp_path / "t.xlsx").write_bytes(as_xlsx(sheet_row(1, "input", "output")))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    monkeypatch.delitem(__import__("sys").modules, "seqtune.data.workbooks", raising=False)
    with pytest.raises(MissingDependencyError, match=r"t.xlsx' needs the package 'openpyxl': pip install 'seqtune\[excel\]'"):
        read(tmp_path / "t.xlsx")


def test_a_saved_data_set(tmp_path):
    folder = save(tmp_path / "saved", polars.DataFrame(pairs(50), schema=["input", "output"], orient="row"), 3)
    assert read(folder) == (pairs(50), [])
    assert [row.line for row in read_examples(str(folder), DataConfig())[0]] == list(range(1, 51))
    for state, message in (
        ('{"_data_files": [{"filename": "../t.csv"}]}', "lists '../t.csv', which is no name of a file in it"),
        ('{"_data_files": [{"filename": "absent.arrow"}]}', "lists 'absent.arrow', which is not there"),
        ('{"_data_files": 3}', "lists no file"),
        ("[", "cannot be read"),
    ):
        (folder / "state.json").write_text(state)
        with pytest.raises(DataError, match=message):
            read(folder)


def test_datasets_itself_writes_such_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([{"input": a, "output": b, "more": {"a": 1}} for a, b in ROWS])
    made.select([2, 0]).save_to_disk(tmp_path / "d")
    assert read(tmp_path / "d") == ([ROWS[2], ROWS[0]], [])
    assert open_table(str(tmp_path / "d"), DataConfig()).columns == ("input", "output", "more.a")
    assert read(name_of(made.select([1]))) == ([ROWS[1]], [])
    assert set(settings_of(datasets.DatasetDict(train=made, test=made))) == {"data.path", "data.test_path"}


def test_the_splits_of_a_saved_data_set_are_taken_and_said(tmp_path):
    for split in ("train", "test", "extra"):
        save(tmp_path / "d" / split, FRAME, 1)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test", "extra"]}')
    named, notes = with_columns(load_config(overrides={"data.path": str(tmp_path / "d")}))
    assert (named.data.path, named.data.test_path) == (str(tmp_path / "d/train"), str(tmp_path / "d/test"))
    assert notes == ["splits: train, test; not read: extra"]
    with pytest.raises(DataError, match="of several splits; name one of them: .*/d/train, .*/d/test"):
        read(tmp_path / "d")


LISTING = [
    "README.md",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has one data set, in the layout that `push_to_hub` leaves."""
    (tmp_path / "data").mkdir()
    for number, name in enumerate(LISTING[1:]):
        FRAME[number : number + 1].write_parquet(tmp_path / name)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository, **_: {"team/pairs": LISTING}[repository])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name, **_: str(tmp_path / name))


def test_a_split_of_a_data_set_on_the_hub(hub):
    assert read("hf://datasets/team/pairs?split=train") == (ROWS[:2], [])
    assert read("hf://datasets/team/pairs/data?split=test") == (ROWS[2:], [])
    assert read("hf://datasets/team/pairs/data/test-00000-of-00001.parquet") == (ROWS[2:], [])
    with pytest.raises(DataError, match=r"holds 3 tables; name one, .*: \?split=train, \?split=test, /data/train-00000"):
        read("hf://datasets/team/pairs")
    with pytest.raises(DataError, match="has no split 'tests'; did you mean 'test'\\?; splits: train, test"):
        read("hf://datasets/team/pairs?split=tests")
    with pytest.raises(DataError, match="write hf://datasets/OWNER/NAME, with /FILE or \\?split=NAME"):
        read("hf://datasets/team/pairs?config=x")
    named, notes = with_columns(load_config(overrides={"data.path": "hf://datasets/team/pairs"}))
    assert named.data.test_path == "hf://datasets/team/pairs?split=test"
    assert notes == ["splits: train, test"]


def test_parts_with_other_columns_are_refused(hub, tmp_path):
    FRAME.rename({"output": "answer"}).write_parquet(tmp_path / LISTING[2])
    with pytest.raises(DataError, match="lies in files of different columns: 'train-00000-of-00002.parquet' has input, output"):
        read("hf://datasets/team/pairs?split=train")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_a_nested_value_is_no_text(tmp_path, kind):
    frame = polars.DataFrame({"input": ["a", "b"], "output": [["x"], ["y", "z"]], "data": [{"src": "s", "n": 1}] * 2})
    path = tmp_path / f"t.{kind}"
    {"jsonl": frame.write_ndjson, "parquet": frame.write_parquet, "arrow": frame.write_ipc}[kind](path)
    with pytest.raises(
        DataError, match=r"no usable row \(2 rejected; first: line 1: column 'output' holds a nested value \(\[\"x\"\]\)"
    ):
        read(path)
    assert read(path, output="data.src") == ([("a", "s"), ("b", "s")], [])
    assert read_examples(str(path), DataConfig(output="data.src"))[0][1].fields["output"] == '["y", "z"]'


@pytest.mark.parametrize(
    "frame",
    [FRAME, FRAME.lazy(), FRAME.to_pandas(), FRAME.to_arrow(), FRAME.to_arrow().to_batches()[0]],
    ids=["polars", "lazy", "pandas", "pyarrow", "batch"],
)
def test_frames_are_tables(frame, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path))
    assert read(name_of(frame)) == (ROWS, [])
    assert name_of(frame) == name_of(frame)
    assert len(list((tmp_path / "tables").iterdir())) == 1


def test_what_is_no_table(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path))
    for table, message in (
        ([("a", "b")], "a table is a path, or a frame of pandas, polars, pyarrow or datasets, not a list"),
        (pandas.DataFrame({"a": [1, "x", b"y"]}), "the frame cannot be read"),
        ({"training": FRAME}, "the splits training: there must be train"),
    ):
        with pytest.raises(DataError, match=message):
            settings_of(table)


def test_fit_and_evaluate_take_frames(tmp_path, monkeypatch, llama_folder):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    frame = pandas.DataFrame(pairs(40), columns=["question", "answer"])
    settings = {"model.name": str(llama_folder), "train.max_steps": 1, "decode.max_new_tokens": 4, "out": str(tmp_path / "run")}
    fitted = seqtune.fit({"train": frame, "test": frame[:5]}, settings=settings, quiet=True)
    assert fitted.metrics["num_items"] == 5
    assert seqtune.evaluate(str(tmp_path / "run"), polars.from_pandas(frame[:4]), quiet=True)["num_items"] == 4
    kept = save(tmp_path / "d", polars.from_pandas(frame[:6]), 2)
    assert seqtune.evaluate(str(tmp_path / "run"), str(kept), quiet=True)["num_items"] == 6
    asked = frame[:3].assign(
        n=[1, 2, None], d=pandas.to_datetime(["2024-02-01", None, None]), s=pandas.array([1, None, 2], "Int64")
    )
    texts = [answer.prediction for answer in seqtune.predict(str(tmp_path / "run"), asked["question"])]
    assert [answer.prediction for answer in seqtune.predict(str(tmp_path / "run"), asked)] == texts
    with pytest.raises(
        DataError, match="a frame without a column 'question'; rename the one that is asked about; columns: q, n"
    ):
        seqtune.predict(str(tmp_path / "run"), asked[["question", "n"]].rename(columns={"question": "q"}))
    assert seqtune.SequenceLearner.load(str(tmp_path / "run")).report() == tmp_path / "run" / "report.html"
    frame[:3].to_feather(tmp_path / "ask.feather")
    assert (
        run_app(["predict", str(tmp_path / "run"), "--file", str(tmp_path / "ask.feather"), "--out", str(tmp_path / "a")]) == 0
    )
    assert len((tmp_path / "a" / "part-00000.jsonl").read_text().splitlines()) == 3


def test_check_takes_json_lists_and_saved_data_sets_for_tables(tmp_path, llama_folder, capsys):
    (tmp_path / "t.json").write_text(json.dumps([{"input": a, "output": b} for a, b in pairs(20)]))
    frame = polars.DataFrame(pairs(20), schema=["input", "output"], orient="row")
    save(tmp_path / "d" / "train", frame, 1)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for name in ("t.json", "d", "d/train"):
        assert run_app(["check", str(tmp_path / name), "--model", str(llama_folder)]) == 0
        assert f"ready to train: seqtune fit --data {tmp_path / name} " in capsys.readouterr().out
