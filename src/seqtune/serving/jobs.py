"""Files that are answered while their senders wait: read, answered in portions among all other requests, fetched, forgotten."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import pyarrow
from fastapi import APIRouter, Query, Request
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse

from seqtune import runs
from seqtune.data.sources import read_examples
from seqtune.errors import DataError, SeqtuneError
from seqtune.records import Example, Prediction
from seqtune.report.answer_table import write_answer_table
from seqtune.sections import DataConfig, DecodeConfig
from seqtune.serving.limits import Limits
from seqtune.serving.predicting import settings
from seqtune.serving.refusals import Json, Refusal
from seqtune.serving.served import Served
from seqtune.serving.shelf import Shelf

PREFIX = "seqtune-serve-"  # of its folder; then the number of its process
PORTION = 64  # rows that are asked for at once
UNPACKED = 4  # a Parquet file may be so many times as large as others when it is unpacked
BATCH = 16  # rows of it that are looked at together
KINDS = {"csv": "text/csv", "jsonl": "application/x-ndjson"}
FileKind = Literal["csv", "tsv", "jsonl", "parquet"]


class JobRequest(BaseModel):
    """What a file is, and how its inputs are answered; what is left out is as the run has it."""

    model_config = ConfigDict(extra="forbid")

    kind: FileKind
    model: str | None = None
    column: str | None = Field(default=None, description="holds the inputs, if it is not called as the run has it")
    num_beams: int | None = None
    num_return: int | None = None
    verify: bool | None = None
    abstain: bool | None = None


@dataclass(slots=True)
class Job:
    """A file and what has become of it.

    Attributes:
        id: cannot be guessed; who knows it may see and end the job.
        folder: for the file and its answers.
        state: `waiting`, `answering`, `done` or `failed`.
        num_done: rows that are answered.
        num_rows: of the file; 0 until it is read.
        num_skipped: rows that cannot be used.
        error: why it failed.
        ended: when, in seconds of the monotonic clock.
        task: does the work.
    """

    id: str
    folder: Path
    state: str = "waiting"
    num_done: int = 0
    num_rows: int = 0
    num_skipped: int = 0
    error: str = ""
    ended: float | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def described(self) -> dict[str, Any]:
        """The JSON form."""
        counts = {"num_done": self.num_done, "num_rows": self.num_rows, "num_skipped": self.num_skipped}
        return {"id": self.id, "state": self.state, **counts, "error": self.error}


def _sweep() -> None:
    """Remove the folders of this user's servers that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)) and not left.is_symlink() and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)


class Jobs:
    """All jobs of a server; they live in a temporary folder, and no longer than the server.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.known: dict[str, Job] = {}
        self.folder = Path()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have a folder; at the end, end what is under way and remove all of it. What killed servers left goes, too."""
        _sweep()
        with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
            self.folder = Path(folder)
            yield
            for job in list(self.known.values()):
                await self.end(job)

    def find(self, name: str) -> Job:
        """The job of an id.

        Raises:
            Refusal: there is none.
        """
        if name not in self.known:
            raise Refusal(404, "there is no such job; answers are kept for a while only", "job_not_found")
        return self.known[name]

    async def begin(self, request: Request, kind: FileKind) -> Job:
        """Take in a file.

        Raises:
            Refusal: there are too many jobs.
        """
        late = time.monotonic() - 60 * self.limits.job_minutes
        for job in [j for j in self.known.values() if j.ended is not None and j.ended < late]:
            await self.end(job)
        if len(self.known) >= self.limits.jobs:
            raise Refusal(
                429, f"{len(self.known)} files are being answered or kept; try again later", "too_many_jobs", retry_after=60
            )
        name = secrets.token_urlsafe(16)
        job = self.known[name] = Job(name, self.folder / name)
        try:
            job.folder.mkdir()
            with (job.folder / f"input.{kind}").open("wb") as handle:
                async for chunk in request.stream():
                    handle.write(chunk)
        except BaseException:
            await self.end(job)
            raise
        return job

    async def end(self, job: Job) -> None:
        """Forget a job, whatever its state."""
        self.known.pop(job.id, None)
        if job.task is not None:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)
        shutil.rmtree(job.folder, ignore_errors=True)

    async def work(self, job: Job, run: Served, decode: DecodeConfig, column: str | None) -> None:
        """Answer a file, portion by portion."""
        try:
            [file] = job.folder.iterdir()
            examples, job.num_skipped = await asyncio.to_thread(_rows, file, run, column, self.limits)
            job.state, job.num_rows = "answering", len(examples)
            predictions: list[Prediction] = []
            for first in range(0, len(examples), PORTION):
                portion = examples[first : first + PORTION]
                answers = await _patiently(run, portion, decode)
                predictions += [replace(p, fields=row.fields) for row, p in zip(portion, answers, strict=True)]
                job.num_done = len(predictions)
            await asyncio.to_thread(runs.write_predictions, job.folder / "answers.jsonl", predictions)
            await asyncio.to_thread(write_answer_table, job.folder / "answers.csv", predictions)
            job.state = "done"
        except (SeqtuneError, Refusal) as error:
            job.state, job.error = "failed", str(getattr(error, "message", error))
        except Exception:
            job.state, job.error = "failed", "the server failed; its log tells how"
            raise
        finally:
            job.ended = time.monotonic()


async def _patiently(run: Served, examples: Sequence[Example], decode: DecodeConfig) -> list[Prediction]:
    """Answers, asked for again as long as the queue is full."""
    while True:
        try:
            return [answer.prediction for answer in await run.answer(examples, decode)]
        except Refusal as refusal:
            if refusal.status != 429:
                raise
            await asyncio.sleep(1.0)


def _rows(file: Path, run: Served, column: str | None, limits: Limits) -> tuple[Sequence[Example], int]:
    """The rows of a file, and how many cannot be used.

    Raises:
        DataError: there are too many, or the file cannot be read.
    """
    _check_size(file, limits)
    task = run.predictor.task
    data = task.reading(DataConfig(max_cell_characters=limits.characters))
    data = data.model_copy(update={"input": column}) if column else data
    try:
        examples, rejected = read_examples(str(file), data, need_output=False)
    except DataError as error:  # the user's file has another name
        raise DataError(str(error).replace(repr(str(file)), "the file")) from None
    run.predictor.template.check_columns([*examples[0].fields, task.input], with_target=False)
    return examples, len(rejected)


def _check_size(file: Path, limits: Limits) -> None:
    """Refuse a file that is small only as long as it is packed, before it is read as a whole.

    Raises:
        DataError: it has too many rows, or its texts take too much room.
    """
    number = _parquet_rows(file, UNPACKED * limits.file) if file.suffix == ".parquet" else file.read_bytes().count(b"\n")
    if number > limits.rows + 1:
        raise DataError(f"the file has {number:,} rows; it may have {limits.rows:,}")


def _parquet_rows(file: Path, most: int) -> int:
    try:
        with parquet.ParquetFile(file) as opened:
            described = opened.metadata
            size = sum(described.row_group(i).total_byte_size for i in range(described.num_row_groups))
            for batch in opened.iter_batches(BATCH) if size <= most else ():
                size += batch.nbytes  # texts that are stored once and named often count as often as they are named
                if size > most:
                    break
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"the file cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    if size > most:
        raise DataError(f"the file takes more than {most:,} bytes when it is unpacked")
    return described.num_rows


def router(shelf: Shelf, jobs: Jobs) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix="/v1/jobs")

    @made.post("", status_code=202)
    async def begin(request: Request, asked: Annotated[JobRequest, Query()]) -> Json:
        """Answer the table that is the body."""
        run = shelf.find(asked.model)
        decode = settings(run.predictor, asked.model_dump(exclude={"kind", "model", "column"}))
        run.searching_by(decode)  # says now what is wrong with it
        job = await jobs.begin(request, asked.kind)
        job.task = asyncio.create_task(jobs.work(job, run, decode, asked.column))
        return Json(job.described(), 202)

    @made.get("/{name}")
    async def look(name: str) -> Json:
        """How far it is."""
        return Json(jobs.find(name).described())

    @made.delete("/{name}")
    async def end(name: str) -> Json:
        """End it, or forget its answers."""
        job = jobs.find(name)
        await jobs.end(job)
        return Json({"id": name, "state": "ended"})

    @made.get("/{name}/answers")
    async def answers(name: str, kind: Literal["csv", "jsonl"] = Query(default="csv")) -> FileResponse:
        """The answers."""
        job = jobs.find(name)
        if job.state != "done":
            raise Refusal(409, f"the job is {job.state}, so there are no answers to fetch", "job_not_done")
        return FileResponse(job.folder / f"answers.{kind}", media_type=KINDS[kind], filename=f"answers.{kind}")

    return made
