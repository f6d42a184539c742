"""Names with one or two character errors -> SMILES: what a rule-based reader cannot do, for a model to learn.

python examples/name_repair/make_table.py molecules.csv repair.csv
"""

from __future__ import annotations

import csv
import random
import string
import sys
from pathlib import Path

LETTERS = string.ascii_lowercase + string.digits + "-,()[]"


def corrupt(name: str, generator: random.Random) -> str:
    """The name with one or two errors, each a character lost, doubled, replaced, or swapped with its neighbour."""
    wrong = name
    for _ in range(generator.choice((1, 2))):
        place = generator.randrange(len(wrong) - 1)
        before, here, after, rest = wrong[:place], wrong[place], wrong[place + 1], wrong[place + 2 :]
        wrong = generator.choice(
            (
                before + after + rest,
                before + here + here + after + rest,
                before + generator.choice(LETTERS) + after + rest,
                before + after + here + rest,
            )
        )
    return wrong


def main(source: Path, out: Path) -> None:
    """Read a table with the columns smiles, iupac and skeleton; write it with a corrupted name in each row."""
    generator = random.Random(0)
    with source.open(newline="") as handle, out.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["iupac", "smiles", "right_name", "skeleton"])
        for row in csv.DictReader(handle):
            wrong = corrupt(row["iupac"], generator)
            if wrong != row["iupac"]:
                writer.writerow([wrong, row["smiles"], row["iupac"], row["skeleton"]])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
