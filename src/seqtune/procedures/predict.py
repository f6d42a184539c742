"""A table answered: at once, or shard by shard, so that it may be of any size and may be interrupted.

A shard is a whole file or none. Its rows and its name follow from its number, so that each row is answered once, in the same
file and with the same bytes, however often the work was cut off and whichever machine did it.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow

from seqtune import folders, plugins, progress, runs
from seqtune.data import kept
from seqtune.data.places import files_of
from seqtune.data.sources import read_examples, said_of
from seqtune.data.table import Table
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError, DataError, RunError, near_path
from seqtune.models.location import local_folder
from seqtune.models.machine import release_memory
from seqtune.procedures.evaluate import Questions
from seqtune.records import Example, Prediction, Rejected
from seqtune.report.answer_table import write_shard
from seqtune.sections import ModelConfig

KINDS = (".jsonl", ".csv", ".tsv", ".parquet")
SHARD_ROWS = 2_000
ASKED = "asked.json"
ANSWERS = folders.Kind(
    "folder of answers",
    ".seqtune-answers",
    (runs.MANIFEST, *(f"part-*{kind}" for kind in KINDS), "rejected.jsonl", ASKED),
    "give the same command again to go on with them, or choose another --out",
)


@dataclass(frozen=True, slots=True)
class Shards:
    """The files that answers are written to.

    Attributes:
        kind: ending of a file, one of `KINDS`.
        rows: of a file.
        escape: in .csv and .tsv, make texts harmless that a spreadsheet would compute.
    """

    kind: str = ".jsonl"
    rows: int = SHARD_ROWS
    escape: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: names what is allowed.
        """
        if self.kind not in KINDS or self.rows < 1:
            raise ConfigError(
                f"shards are of the kinds {', '.join(KINDS)} and have 1 row or more; asked for were {self.kind!r} and "
                f"{self.rows:,}"
            )

    def path(self, folder: Path, number: int) -> Path:
        """The file of a shard."""
        return folder / f"part-{number:05d}{self.kind}"

    def size(self, numbers: Iterable[int], num_rows: int) -> int:
        """Rows of these shards of a table with so many."""
        return sum(min(self.rows, num_rows - number * self.rows) for number in numbers)


@dataclass(slots=True)
class Answered:
    """What became of a table.

    Attributes:
        num_rows: answered, in this call or before.
        num_shards: files that they are in.
        num_found: shards that were there already.
        status: how many answers have which status.
    """

    num_rows: int
    num_shards: int
    num_found: int = 0
    status: Counter[str] = field(default_factory=Counter)


def predictor_of(run: str, questions: Questions) -> Predictor:
    """The model, loaded, searching as it is asked to."""
    return Predictor.of_run(run, questions.decode, questions.task, questions.trusted)


def rows_of(predictor: Predictor, questions: Questions) -> tuple[Sequence[Example], list[Rejected], list[str]]:
    """The rows of a table that a model can be asked about, the others, and what is to be said of how it was read.

    Raises:
        DataError: the table cannot be read, or lacks a column of the template.
    """
    path = Path(questions.data)
    readers = predictor.task.pack.readers if predictor.task.pack else {}
    reader = readers.get(path.suffix.lower())
    if reader:
        if not path.exists():
            raise DataError(f"{questions.data!r} does not exist{near_path(path)}")
        return list(plugins.load(reader)(path)), [], []
    task = dataclasses.replace(predictor.task, input=questions.input) if questions.input else predictor.task
    settings = task.reading(questions.settings)
    said = said_of(questions.data, settings)
    rows, rejected = read_examples(questions.data, settings, need_output=False)
    predictor.template.check_columns(list(rows[0].fields), with_target=False)
    return rows, rejected, said


class Answerer:
    """Answers one shard after the other; each worker of a cluster has one.

    Args:
        predictor: the model.
        rows: of the whole table.
        shards: the files to write.
        folder: for them.
    """

    def __init__(self, predictor: Predictor, rows: Sequence[Example], shards: Shards, folder: Path):
        self.predictor, self.rows, self.shards, self.folder = predictor, rows, shards, folder

    @classmethod
    def of_run(cls, run: str, questions: Questions, shards: Shards, folder: Path) -> Answerer:
        """Load the model and read the table."""
        predictor = predictor_of(run, questions)
        return cls(predictor, rows_of(predictor, questions)[0], shards, folder)

    def __call__(self, number: int, tick: progress.Tick = progress.silent) -> pyarrow.Table:
        """Answer a shard and write it; returns one row with its number and how many answers have which status."""
        size = self.shards.rows
        rows = list(self.rows[number * size : (number + 1) * size])
        answers = [
            dataclasses.replace(answer, fields=row.fields)
            for row, answer in zip(rows, self.predictor.predict(rows, tick), strict=True)
        ]
        self._write(self.shards.path(self.folder, number), answers)
        release_memory()
        status = json.dumps(Counter(answer.status for answer in answers))
        return pyarrow.table({"number": [number], "status": [status]})

    def _write(self, path: Path, answers: list[Prediction]) -> None:
        if path.suffix == ".jsonl":
            runs.write_predictions(path, answers)
            return
        columns = self.rows.columns.fields if isinstance(self.rows, Table) else ()
        # an answer that was abstained from leaves all of its candidates to the further columns
        num_return = self.predictor.num_candidates + self.predictor.decode.abstain
        write_shard(path, answers, columns, num_return, escape=self.shards.escape)


def answer_in_shards(
    run: str, questions: Questions, shards: Shards, folder: Path, *, ray: str | None = None, quiet: bool = False
) -> Answered:
    """Answer a table into a folder: `part-00000.jsonl` and so on, `rejected.jsonl`, and the manifest when all is done.

    What is there already is kept, so the same call goes on where it was cut off.

    Args:
        run: run folder, model folder or hub id.
        questions: the table and what differs from the run's own settings.
        shards: the files to write.
        folder: for the answers; created.
        ray: address of a Ray cluster, or `local`; `None` for this process.
        quiet: show no progress.

    Raises:
        RunError: the folder holds answers to another question, or another process is writing them.
        DataError: the table cannot be read.
    """
    folders.check_free(folder, ANSWERS, reuse=True)
    folders.create(folder, ANSWERS)
    with folders.held(folder, ANSWERS):
        folders.sweep(folder, ANSWERS)
        predictor = predictor_of(run, questions)
        rows, rejected, said = rows_of(predictor, questions)
        for line in said if not quiet else ():
            progress.console().print(line, markup=False)
        _check_same(folder, _facts(run, questions, shards, predictor, len(rows)))
        runs.write_rejected(folder / "rejected.jsonl", rejected)
        paths = [shards.path(folder, number) for number in range(-(-len(rows) // shards.rows))]
        waiting = [number for number, path in enumerate(paths) if not path.exists()]
        found = Answered(len(rows), len(paths), len(paths) - len(waiting))
        answerer = Answerer(predictor, rows, shards, folder)
        with progress.show("predict", len(rows), enabled=not quiet) as tick:
            try:
                for status in _results(answerer, waiting, (run, questions, ray), tick):
                    found.status.update(status)
            except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal
                progress.console().print("stopping: shards that are written stay, and the same command goes on from there")
                raise
        if not runs.is_complete(folder):
            runs.write_manifest(folder, [*paths, folder / ASKED, folder / "rejected.jsonl"])
    return found


def _results(
    answerer: Answerer, waiting: Sequence[int], asked: tuple[str, Questions, str | None], tick: progress.Tick
) -> Iterator[dict[str, int]]:
    """How many answers of each waiting shard have which status, when it is written."""
    run, questions, ray = asked
    shards, folder, total = answerer.shards, answerer.folder, len(answerer.rows)
    done = total - shards.size(waiting, total)
    tick(done, "were there already" if done else "")
    if ray is None or not waiting:
        results: Iterable[pyarrow.Table] = (
            answerer(number, partial(_tick_from, tick, total - shards.size(waiting[place:], total)))
            for place, number in enumerate(waiting)
        )
    else:
        mapped = plugins.load("seqtune.cluster.mapping:mapped")
        given = (run, questions, shards, folder.resolve())
        results = mapped(Answerer.of_run, given, list(waiting), ray, folder / ASKED)
    for result in results:
        [number], [status] = result["number"].to_pylist(), result["status"].to_pylist()
        done += shards.size([number], total)
        if ray is not None:  # here each answer was counted as it came
            tick(done)
        yield json.loads(status)


def _tick_from(tick: progress.Tick, before: int, done: float, remark: str = "") -> None:
    tick(before + done, remark)


def _facts(run: str, questions: Questions, shards: Shards, predictor: Predictor, num_rows: int) -> dict[str, Any]:
    """What decides the answers."""
    place = Path(run) / "model" if (Path(run) / "model").is_dir() else None
    model = place or local_folder(ModelConfig(name=run))
    files = sorted(p for p in model.rglob("*") if p.is_file()) if model else []
    reading = questions.settings.model_dump(
        mode="json", include={"encoding", "delimiter", "quote", "header", "sheet", "id", "max_cell_characters"}
    )
    return {
        "model": kept.key_of(*((p.name, kept.digest(p)) for p in files)) if files else run,
        "table": kept.digest(*files_of(questions.data)),
        "reading": reading | {"input": questions.input or predictor.task.input},
        "decode": predictor.decode.model_dump(mode="json"),
        "shards": {"kind": shards.kind, "rows": shards.rows},
        "num_rows": num_rows,
    }


def _check_same(folder: Path, facts: dict[str, Any]) -> None:
    """Refuse to go on with the answers to another question.

    Raises:
        RunError: names what differs.
    """
    path = folder / ASKED
    if path.exists():
        noted = runs.read_json(path)
        ours, theirs = _leaves(facts), _leaves(noted)
        changed = [f"{k}: {theirs.get(k)!r} -> {ours.get(k)!r}" for k in ours | theirs if ours.get(k) != theirs.get(k)]
        if changed:
            raise RunError(f"{str(folder)!r} holds answers to another question ({'; '.join(changed)}); choose another --out")
    else:
        runs.write_json(path, facts)


def _leaves(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in facts.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
