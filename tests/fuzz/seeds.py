"""Small whole files of every kind that is read, to be damaged; made anew each time, so that none of them is a binary in the repository."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pyarrow
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


def as_zip(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("point/predictions.jsonl", content)
    return out.getvalue()


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
    study = yaml.safe_dump({"name": "s", "out": "s", "base": CONFIG, "axes": {"train.clip": [1.0, 2.0]}, "seeds": [0]}).encode()
    return {
        "csv": [("t.csv", table), ("t.tsv", as_csv(ROWS, "\t")), ("t.csv.gz", gzip.compress(table)), ("t.csv.zst", zstandard.compress(table))],
        "jsonl": [("t.jsonl", jsonl), ("t.jsonl.zst", zstandard.compress(jsonl)), ("c.jsonl", as_jsonl(turns))],
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
