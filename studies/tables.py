"""Tables of tasks, as the studies at 135 M parameters read them, from a folder with the public data sets.

    python studies/tables.py FOLDER            # writes studies/data/names.csv, phonemes.csv, dates.csv, ...
    python studies/tables.py FOLDER mixture    # and those of studies/mixture-135m.yaml: sst2.csv, cot.csv, bbh.csv, ...

The folder holds `smiles_iupac/train.tsv.gz` and `test.tsv.gz` (columns smiles, iupac) and `tasks/*.tsv.gz` (columns input,
output): cmudict_g2p (CMU Pronouncing Dictionary), datetime_timex_en (microsoft/Recognizers-Text), wikisql
(jkkummerfeld/text2sql-data) and gsm8k (openai/grade-school-math). Every table has the columns input, output and split; no input
is in two splits. For the mixture it holds `benchmarks/*.tsv.gz` (SST-2, RTE, WNLI of GLUE), `flan/flan_v2_cot.jsonl.gz`
(google-research/FLAN) and `flan/bbh.jsonl.gz` (suzgunmirac/BIG-Bench-Hard), whose rows keep their task as a column.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import polars

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "name_repair"))
from make_table import corrupt  # the example's own errors

OUT = Path(__file__).parent / "data"
TRAIN, VALIDATION, TEST = 10_000, 200, 500
SMILES, NAME = 40, 60  # characters of a molecule at most

Pair = tuple[str, str]


def molecules(folder: Path, split: str) -> list[Pair]:
    """SMILES and name of the short molecules, in the file's order."""
    frame = polars.read_csv(folder / "smiles_iupac" / f"{split}.tsv.gz", separator="\t", quote_char=None)
    short = frame.filter(polars.col("smiles").str.len_chars() <= SMILES, polars.col("iupac").str.len_chars() <= NAME)
    return list(short.select("smiles", "iupac").iter_rows())


def pairs(folder: Path, name: str) -> list[Pair]:
    """Input and output of a task's table, each input once."""
    frame = polars.read_csv(folder / "tasks" / f"{name}.tsv.gz", separator="\t", quote_char=None)
    return list(frame.unique("input", maintain_order=True).select("input", "output").iter_rows())


def repairs(rows: list[Pair], generator: random.Random) -> Iterator[Pair]:
    """Names with an error or two, and the right ones."""
    for _, name in rows:
        wrong = corrupt(name, generator)
        if wrong != name:
            yield wrong, name


def write(name: str, train: list[Pair], test: list[Pair]) -> None:
    """Shuffle, cut to size, write; validation rows come from the training rows."""
    generator = random.Random(0)
    generator.shuffle(train)
    generator.shuffle(test)
    held_out = {given for given, _ in test[:TEST]}
    train = [row for row in train if row[0] not in held_out]
    cut = min(VALIDATION, len(train) // 10)
    validation, train = train[:cut], train[cut : cut + TRAIN]
    rows = [
        (*row, split) for split, part in (("train", train), ("validation", validation), ("test", test[:TEST])) for row in part
    ]
    polars.DataFrame(rows, schema=["input", "output", "split"], orient="row").write_csv(OUT / f"{name}.csv")
    print(f"{name}: {len(train):,} training, {len(validation)} validation and {len(test[:TEST])} test rows")


def divided(rows: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Training rows, and a quarter of the rows, 500 at most, to test on."""
    random.Random(1).shuffle(rows)
    cut = min(TEST, len(rows) // 4)
    return rows[cut:], rows[:cut]


def main(folder: Path) -> None:
    """Write all tables."""
    OUT.mkdir(exist_ok=True)
    train, test = molecules(folder, "train"), molecules(folder, "test")
    write("names", list(train), list(test))
    write("names-back", [(name, smiles) for smiles, name in train], [(name, smiles) for smiles, name in test])
    write("repair", list(repairs(train, random.Random(0))), list(repairs(test, random.Random(1))))
    write("phonemes", *divided(pairs(folder, "cmudict_g2p")))
    write("dates", *divided(pairs(folder, "datetime_timex_en")))
    write("sql", *divided([(q, s) for q, s in pairs(folder, "wikisql") if len(q) <= 100 and len(s) <= 160]))
    maths = [(question, answer.rpartition("#### ")[2]) for question, answer in pairs(folder, "gsm8k") if len(question) <= 300]
    write("maths", *divided(maths))


def mixture(folder: Path) -> None:
    """Write the tables of `studies/mixture-135m.yaml`; the public development rows of GLUE's tasks are its test rows."""
    for name, held in (("sst2", "test"), ("rte", "dev"), ("wnli", "dev")):
        rows = polars.read_csv(folder / "benchmarks" / f"{name}.tsv.gz", separator="\t", infer_schema=False)
        rows = rows.filter(polars.col("split").is_in(["train", held])).with_columns(
            polars.col("split").replace(held, "test"), polars.col("label").replace({"0": "no", "1": "yes"})
        )
        rows.write_csv(OUT / f"{name}.csv")
    for name, answer in (("flan_v2_cot", "answer"), ("bbh", "target")):
        with gzip.open(folder / "flan" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as handle:
            rows = polars.DataFrame([json.loads(line) for line in handle]).rename({answer: "output"})
        rows.with_columns(polars.col("input").str.replace_all("\\n", "\n", literal=True)).write_csv(
            OUT / f"{name.rpartition('_')[2]}.csv"
        )


if __name__ == "__main__":
    write_all = mixture if "mixture" in sys.argv[2:] else main
    write_all(Path(sys.argv[1]))
