"""Small whole files of every kind that is read, to be damaged; made anew each time, so that none of them is a binary in the repository."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import polars
import pyarrow
import pyarrow.ipc
import yaml
import zstandard
from pyarrow import parquet
from safetensors.numpy import save

ROWS = [{"input": f"{i} ½", "output": f'say "{i}",\nplease', "more": [{"a": i}, {"a": None}]} for i in range(20)]
PREDICTION = {
    "id": "1", "input": "a", "reference": "b", "prediction": "b", "score": -0.5, "status": "ok", "details": {"verdict": "verified"},
    "hypotheses": [{"text": "b", "score": -0.5, "num_tokens": 2, "finished": True}], "fields": {"input": "a"},
    "context": [{"role": "user", "content": "hello"}],
}  # fmt: skip
CONFIG = {
    "data": {"path": "pairs.csv", "num_examples": 10, "split": {"method": "hash", "validation": 0.1}}, "out": "run",
    "format": {"template": "Name {input}:", "answers": ["yes", "no"]}, "model": {"name": "builtin:base", "trim_vocabulary": True},
    "adapter": {"method": "lora", "rank": 4, "targets": ["q_proj"]}, "train": {"epochs": 2.5, "learning_rate": 2e-5, "seed": 1},
    "decode": {"num_beams": 3, "num_return": 2},
}  # fmt: skip
RECORD = """methane
  seqtune

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    1.0000    0.0000    0.0000 O   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
M  END
> <PUBCHEM_COMPOUND_CID>
{cid}

> <PUBCHEM_SMILES>
CO

> <PUBCHEM_IUPAC_NAME>
methanol

$$$$
"""


BUNDLE = {
    "name": "t", "data": {"path": "rows.jsonl"}, "columns": {"word": "input"}, "templates": ["Say {word}:", {"template": "{input}?"}],
    "cluster": "c", "metric": "exact_match", "chain": "more", "pool": "rows.jsonl",
}  # fmt: skip
INSTRUCTIONS = {
    "Definition": ["Add."], "Categories": ["c"], "Positive Examples": [{"input": "90+1", "output": "91", "explanation": "x"}],
    "Instances": [{"id": str(i), "input": f"{i}+1", "output": [str(i + 1)]} for i in range(9)],
}  # fmt: skip
JINJA = "{% for w in input.split() %}{{ loop.index }} {{ w | upper }} {% endfor %}||| {{ answer_choices[0] }}"
PROMPTSOURCE = {
    "dataset": "d", "subset": "s",
    "templates": {"a": {"id": "a", "name": "n", "jinja": JINJA, "answer_choices": "a ||| b", "metadata": {"original_task": True}}},
}  # fmt: skip
HARNESS = {
    "task": "t", "tag": "c", "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": "rows.jsonl"}},
    "training_split": "train", "description": "x", "doc_to_text": "{{input}}", "doc_to_target": "output",
    "doc_to_choice": ["a", "b"], "metric_list": [{"metric": "acc"}],
}  # fmt: skip


def as_tar(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def as_csv(rows: list[dict], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict], **options) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out, **options)
    return out.getvalue()


def as_arrow(rows: list[dict], stream: bool = False, **options) -> bytes:
    table, out = pyarrow.Table.from_pylist(rows), io.BytesIO()
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(out, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue()


def as_polars_arrow(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    polars.DataFrame(rows).with_columns(c=polars.col("output").cast(polars.Categorical)).write_ipc(out, compression="zstd")
    return out.getvalue()


def as_zip(content: bytes, name: str = "point/predictions.jsonl", **options) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **{"compression": zipfile.ZIP_DEFLATED} | options) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def as_xlsx(cells: str, method: int = zipfile.ZIP_DEFLATED, shared: str = "") -> bytes:
    """A workbook whose sheet holds these cells, in the format's own words (ECMA-376), with texts that cells name by number."""
    start, office = '<?xml version="1.0" encoding="UTF-8"?>', "http://schemas.openxmlformats.org/"
    main, relations = f"{office}spreadsheetml/2006/main", f"{office}officeDocument/2006/relationships"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {"workbook": "sheet.main", "worksheets/sheet1": "worksheet", "sharedStrings": "sharedStrings"}
    named = "".join(f'<Override PartName="/xl/{part}.xml" ContentType="{kind}.{name}+xml"/>' for part, name in parts.items())
    files = {
        "[Content_Types].xml": f'<Types xmlns="{office}package/2006/content-types"><Default Extension="rels" ContentType='
        f'"application/vnd.openxmlformats-package.relationships+xml"/>{named}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{office}package/2006/relationships"><Relationship Id="r1" '
        f'Type="{relations}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets>'
        "</workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{office}package/2006/relationships"><Relationship Id="r1" '
        f'Type="{relations}/worksheet" Target="worksheets/sheet1.xml"/><Relationship Id="r2" '
        f'Type="{relations}/sharedStrings" Target="sharedStrings.xml"/></Relationships>',
        "xl/sharedStrings.xml": f'<sst xmlns="{main}">{shared}</sst>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData></worksheet>',
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, start + content)
    return out.getvalue()


def sheet_row(number: int, *texts: str) -> str:
    made = (f'<c r="{chr(65 + i)}{number}" t="inlineStr"><is><t>{text}</t></is></c>' for i, text in enumerate(texts))
    return f'<row r="{number}">{"".join(made)}</row>'


def as_gguf() -> bytes:
    import gguf

    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name("seed")
    writer.add_token_list(["a", "b", "½"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("weight", np.ones((4, 2), np.float32))
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        writer.write_header_to_file(Path(folder) / "seed.gguf")
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(folder) / "seed.gguf").read_bytes()


def seeds() -> dict[str, list[tuple[str, bytes]]]:
    """For each reader the names and contents of files that it reads."""
    table, jsonl = as_csv(ROWS), as_jsonl(ROWS)
    turns = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    flat = [{"input": row["input"], "output": row["output"], "n": i / 3} for i, row in enumerate(ROWS)]
    answers = as_jsonl([PREDICTION, PREDICTION | {"id": "2"}])
    records = "".join(RECORD.format(cid=i) for i in range(1, 4)).encode()
    sheet = sheet_row(1, "input", "output", "n") + "".join(sheet_row(i, f"{i} ½", "say") for i in range(2, 20))
    shared = "".join(f"<si><t>{text}</t></si>" for text in ("input", "output", "½"))
    named = '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c></row>' + "".join(
        f'<row r="{i}"><c r="A{i}" t="s"><v>2</v></c><c r="B{i}"><v>{i / 2}</v></c></row>' for i in range(2, 20)
    )
    study = yaml.safe_dump({"name": "s", "out": "s", "base": CONFIG, "axes": {"train.clip": [1.0, 2.0]}, "seeds": [0]}).encode()
    return {
        "csv": [("t.csv", table), ("t.tsv", as_csv(ROWS, "\t")), ("t.csv.gz", gzip.compress(table)), ("t.csv.zst", zstandard.compress(table))],
        "jsonl": [("t.jsonl", jsonl), ("t.jsonl.zst", zstandard.compress(jsonl)), ("c.jsonl", as_jsonl(turns))],
        "json": [("t.json", json.dumps(ROWS).encode()), ("t.json.xz", lzma.compress(json.dumps(ROWS).encode()))],
        "txt": [("t.txt", as_csv(ROWS, "|")), ("u.txt", as_csv(ROWS, "\t").decode().encode("utf-16"))],
        "packed": [("t.csv.bz2", bz2.compress(table)), ("t.csv.xz", lzma.compress(table)), ("t.arrow.bz2", bz2.compress(as_arrow(flat)))],
        "zip": [
            ("t.zip", as_zip(table, "a/t.csv")), ("s.zip", as_zip(jsonl, "t.jsonl", compression=zipfile.ZIP_STORED)),
            ("x.zip", as_zip(table, "t.csv", compression=zipfile.ZIP_LZMA)), ("b.zip", as_zip(table, "t.csv", compression=zipfile.ZIP_BZIP2)),
            ("p.zip", as_zip(as_parquet(flat), "p.parquet")),
        ],
        "arrow": [
            ("t.arrow", as_arrow(ROWS)), ("z.arrow", as_arrow(flat, compression="zstd")), ("t.feather", as_arrow(flat, compression="lz4")),
            ("s.arrow", as_arrow(ROWS, stream=True)), ("y.arrow", as_arrow(flat, stream=True, compression="zstd")),
            ("v.arrow", as_polars_arrow(flat)), ("c.arrow", as_arrow(turns)),
        ],
        "xlsx": [("t.xlsx", as_xlsx(sheet)), ("u.xlsx", as_xlsx(sheet, zipfile.ZIP_STORED)), ("n.xlsx", as_xlsx(named, zipfile.ZIP_STORED, shared))],
        "saved": [("state.json", b'{"_data_files": [{"filename": "state.json"}], "_format_type": null}')],
        "parquet": [
            ("t.parquet", as_parquet(ROWS)), ("f.parquet", as_parquet(flat, use_dictionary=False, compression="zstd")),
            ("g.parquet", as_parquet(flat, compression="gzip", data_page_version="2.0")), ("c.parquet", as_parquet(turns)),
            ("t.parquet.gz", gzip.compress(as_parquet(flat))),
        ],
        "smi": [("m.smi", "# molecules\nCCO ethanol\nC½\n".encode())],
        "sdf": [("m.sdf", records)],
        "pubchem": [("CID", b"1\tC\n2\tCC\n"), ("CID.gz", gzip.compress(b"".join(b"%d\tC\n" % i for i in range(90))))],
        "pubchem-sdf": [("p.sdf", records), ("p.sdf.gz", gzip.compress(records))],
        "config": [("c.yaml", yaml.safe_dump(CONFIG).encode()), ("e.yaml", b"train: &t {epochs: 1}\ndecode: {<<: {num_beams: 2}}\n")],
        "task": [("task.yaml", b"input: a\noutput: b\ntemplate: 'Name {a}:'\nanswers: ['x', 'y']\nmax_new_tokens: 3\n")],
        "study": [("study.yaml", study)],
        "predictions": [("p.jsonl", answers), ("p.csv", as_csv([{"prediction": "a", "reference": "b", "input": 'x "y"'}] * 3))],
        "archive": [("a.zip", as_zip(answers))],
        "safetensors": [("m.safetensors", save({"a": np.ones((3, 2), np.float32), "b": np.zeros(4, np.int8)}))],
        "index": [("i.json", json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}).encode())],
        "settings": [("config.json", json.dumps({"model_type": "llama", "attn_implementation": "eager", "n": [1, {}]}).encode())],
        "manifest": [("manifest.json", json.dumps({"files": {"manifest.json": {"bytes": 9, "sha256": "a"}}}).encode())],
        "documents": [("d.txt", b"\n\n".join(b"%d a" % i for i in range(120))), ("d.txt.gz", gzip.compress(b"a\n\nb" * 20))],
        "gguf": [("m.gguf", as_gguf())],
        "bundle": [("b.yaml", yaml.safe_dump(BUNDLE).encode())],
        "mixture": [("m.yaml", yaml.safe_dump({"tasks": {"t": BUNDLE}, "held_out": [], "shots": {0: 0.5, 2: 0.5}}).encode())],
        "promptsource": [
            ("p.yaml", yaml.safe_dump(PROMPTSOURCE).encode()), ("p.tar.gz", as_tar("a/p.yaml", yaml.safe_dump(PROMPTSOURCE).encode())),
        ],
        "natural-instructions": [("n.json", json.dumps(INSTRUCTIONS).encode())],
        "flan": [("f.json", json.dumps({"PATTERNS": {"t": [["Say {a}: {options_}", "{answer}"]] * 2}}).encode())],
        "harness": [("h.yaml", yaml.safe_dump(HARNESS).encode())],
    }  # fmt: skip
