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
from seqtune.config import DataConfig, ModelConfig
from seqtune.data import kept
from seqtune.data.files import open_table, resolve
from seqtune.data.layouts import SAID, layout_of
from seqtune.data.sources import read_examples
from seqtune.data.table import Table
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError, DataError, RunError, near_path
from seqtune.models.location import local_folder
from seqtune.records import Example, Prediction, Rejected
from seqtune.report.answer_table import write_shard

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
class Question:
    """A model and a table that it is to answer.

    Attributes:
        run: run folder, model folder or hub id.
        file: the table; for some packs also a file of their own kind.
        column: with the inputs, if it is not called as the run has it.
        decode: settings that differ from the run's own.
        plugin: a pack's task to use instead of the run's own.
        trusted: models whose own Python code may run.
        data: how the table is read.
        kind: ending of a shard's file, one of `KINDS`.
        shard_rows: rows of a shard.
        escape: in .csv and .tsv, make texts harmless that a spreadsheet would compute.
    """

    run: str
    file: str
    column: str | None = None
    decode: Mapping[str, Any] = field(default_factory=dict)
    plugin: str | None = None
    trusted: tuple[str, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    kind: str = ".jsonl"
    shard_rows: int = SHARD_ROWS
    escape: bool = True

    def predictor(self) -> Predictor:
        """The model, loaded."""
        return Predictor.of_run(self.run, self.decode, self.plugin, self.trusted)


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


def rows_of(predictor: Predictor, question: Question) -> tuple[Sequence[Example], list[Rejected], str | None]:
    """The rows of a table that a model can be asked about, the others, and what is to be said of how it was read.

    Raises:
        DataError: the table cannot be read, or lacks a column of the template.
    """
    path = Path(question.file)
    readers = predictor.task.pack.readers if predictor.task.pack else {}
    reader = readers.get(path.suffix.lower())
    if reader:
        if not path.exists():
            raise DataError(f"{question.file!r} does not exist{near_path(path)}")
        return list(plugins.load(reader)(path)), [], None
    task = dataclasses.replace(predictor.task, input=question.column) if question.column else predictor.task
    settings = task.reading(question.data)
    said = SAID.get(layout_of(open_table(question.file, settings).columns, settings))
    rows, rejected = read_examples(question.file, settings, need_output=False)
    predictor.template.check_columns(list(rows[0].fields), with_target=False)
    return rows, rejected, said


class Answerer:
    """Answers one shard after the other; each worker of a cluster has one.

    Args:
        question: what is asked.
        folder: for the shards.
        predictor: if it is loaded already.
        rows: if they are read already.
    """

    def __init__(
        self, question: Question, folder: Path, predictor: Predictor | None = None, rows: Sequence[Example] | None = None
    ):
        self.question, self.folder = question, folder
        self.predictor = predictor or question.predictor()
        self.rows = rows_of(self.predictor, question)[0] if rows is None else rows

    def __call__(self, number: int, tick: progress.Tick = progress.silent) -> pyarrow.Table:
        """Answer a shard and write it; returns one row with its number and how many answers have which status."""
        size = self.question.shard_rows
        rows = list(self.rows[number * size : (number + 1) * size])
        answers = [
            dataclasses.replace(answer, fields=row.fields)
            for row, answer in zip(rows, self.predictor.predict(rows, tick), strict=True)
        ]
        self._write(_shard(self.folder, number, self.question.kind), answers)
        status = json.dumps(Counter(answer.status for answer in answers))
        return pyarrow.table({"number": [number], "status": [status]})

    def _write(self, path: Path, answers: list[Prediction]) -> None:
        if path.suffix == ".jsonl":
            runs.write_predictions(path, answers)
            return
        columns = self.rows.columns.fields if isinstance(self.rows, Table) else ()
        # an answer that was abstained from leaves all of its candidates to the further columns
        num_return = self.predictor.num_candidates + self.predictor.decode.abstain
        write_shard(path, answers, columns, num_return, escape=self.question.escape)


def answer_in_shards(question: Question, folder: Path, *, ray: str | None = None, quiet: bool = False) -> Answered:
    """Answer a table into a folder: `part-00000.jsonl` and so on, `rejected.jsonl`, and the manifest when all is done.

    What is there already is kept, so the same call goes on where it was cut off.

    Args:
        question: what is asked.
        folder: for the answers; created.
        ray: address of a Ray cluster, or `local`; `None` for this process.
        quiet: show no progress.

    Raises:
        RunError: the folder holds answers to another question, or another process is writing them.
        DataError: the table cannot be read.
    """
    if question.kind not in KINDS or question.shard_rows < 1:
        raise ConfigError(
            f"shards are of the kinds {', '.join(KINDS)} and have 1 row or more; asked for were {question.kind!r} and "
            f"{question.shard_rows:,}"
        )
    folders.check_free(folder, ANSWERS, reuse=True)
    folders.create(folder, ANSWERS)
    with folders.held(folder, ANSWERS):
        folders.sweep(folder, ANSWERS)
        predictor = question.predictor()
        rows, rejected, said = rows_of(predictor, question)
        if said and not quiet:
            progress.console().print(said, markup=False)
        _check_same(folder, _facts(question, predictor, len(rows)))
        runs.write_rejected(folder / "rejected.jsonl", rejected)
        shards = [_shard(folder, n, question.kind) for n in range(-(-len(rows) // question.shard_rows))]
        waiting = [number for number, path in enumerate(shards) if not path.exists()]
        found = Answered(len(rows), len(shards), len(shards) - len(waiting))
        with progress.show("predict", len(rows), enabled=not quiet) as tick:
            try:
                for status in _results(Answerer(question, folder, predictor, rows), waiting, ray, tick):
                    found.status.update(status)
            except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal
                progress.console().print("stopping: shards that are written stay, and the same command goes on from there")
                raise
        if not runs.is_complete(folder):
            runs.write_manifest(folder, [*shards, folder / ASKED, folder / "rejected.jsonl"])
    return found


def _shard(folder: Path, number: int, kind: str) -> Path:
    return folder / f"part-{number:05d}{kind}"


def _results(answerer: Answerer, waiting: Sequence[int], ray: str | None, tick: progress.Tick) -> Iterator[dict[str, int]]:
    """How many answers of each waiting shard have which status, when it is written."""
    size, total = answerer.question.shard_rows, len(answerer.rows)
    done = total - _left(waiting, size, total)
    tick(done, "were there already" if done else "")
    if ray is None or not waiting:
        results: Iterable[pyarrow.Table] = (
            answerer(number, partial(_tick_from, tick, total - _left(waiting[place:], size, total)))
            for place, number in enumerate(waiting)
        )
    else:
        mapped = plugins.load("seqtune.cluster.mapping:mapped")
        asked = (answerer.question, answerer.folder.resolve())
        results = mapped(Answerer, asked, list(waiting), ray, answerer.folder / ASKED)
    for result in results:
        [number], [status] = result["number"].to_pylist(), result["status"].to_pylist()
        done += _left([number], size, total)
        tick(done)
        yield json.loads(status)


def _left(waiting: Sequence[int], size: int, total: int) -> int:
    return sum(min(size, total - number * size) for number in waiting)


def _tick_from(tick: progress.Tick, before: int, done: float, remark: str = "") -> None:
    tick(before + done, remark)


def _facts(question: Question, predictor: Predictor, num_rows: int) -> dict[str, Any]:
    """What decides the answers."""
    place = Path(question.run) / "model" if (Path(question.run) / "model").is_dir() else None
    model = place or local_folder(ModelConfig(name=question.run))
    files = sorted(p for p in model.rglob("*") if p.is_file()) if model else []
    return {
        "model": kept.key_of(*((p.name, kept.digest(p)) for p in files)) if files else question.run,
        "table": kept.digest(resolve(question.file)),
        "reading": {k: v for k, v in question.data.model_dump(mode="json").items() if k in ("delimiter", "quote", "id")},
        "column": question.column or predictor.task.input,
        "decode": predictor.decode.model_dump(mode="json"),
        "kind": question.kind,
        "shard_rows": question.shard_rows,
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
