"""`seqtune predict`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqtune.cli.app import (
    AbstainOption,
    BeamsOption,
    EngineOption,
    InputOption,
    JsonOption,
    ReturnOption,
    SetOption,
    TaskOption,
    TrustOption,
    VerifyOption,
    app,
    overrides,
    print_json,
    read_only,
    reading,
    section,
)
from seqtune.report.scores import explained

if TYPE_CHECKING:
    from seqtune.decoding.predictor import Predictor
    from seqtune.procedures.evaluate import Questions
    from seqtune.records import Prediction

OUT_KINDS = (".jsonl", ".csv", ".tsv", ".parquet")
READ = ("data.encoding", "data.delimiter", "data.quote", "data.header", "data.sheet", "data.id", "data.max_cell_characters")
CHUNK = 256  # lines of stdin answered at once
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="Run of an adapter trained on RUN; may be repeated: RUN is loaded once."),
]
NoEscapeOption = Annotated[
    bool, typer.Option("--no-escape", help="CSV, TSV: leave texts that a spreadsheet takes for formulas as they are.")
]


@app.command()
def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Inputs; none: read stdin.")] = None,
    file: Annotated[str | None, typer.Option("--file", help="A table of inputs; for molecules also .smi or .sdf.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Answers: .jsonl, .csv, .tsv or .parquet, or a folder.")] = None,
    shards: Annotated[str | None, typer.Option("--shards", help="With --out FOLDER: jsonl, csv, tsv or parquet.")] = None,
    shard_rows: Annotated[int | None, typer.Option("--shard-rows", help="With --out FOLDER: rows a file; 2,000.")] = None,
    ray: Annotated[str | None, typer.Option("--ray", help="With --out FOLDER: a Ray cluster's address, or local.")] = None,
    adapter: AdapterOption = None,
    no_escape: NoEscapeOption = False,
    grid: Annotated[str | None, typer.Option("--grid", help="Draw inputs and answers: .png or .svg (molecules).")] = None,
    input: InputOption = None,
    num_beams: BeamsOption = None,
    num_return: ReturnOption = None,
    length_penalty: Annotated[float | None, typer.Option("--length-penalty", help="Above 0 favours length.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Limit per answer.")] = None,
    task: TaskOption = None,
    verify: VerifyOption = None,
    abstain: AbstainOption = None,
    engine: EngineOption = None,
    trust_remote_code: TrustOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer texts, a table, or the lines of stdin, in the order given.

    One answer a line; with --num-return above 1: input number, log-probability, answer, between tabs.

    [bold]Example[/bold]: seqtune predict runs/names CCO --num-beams 5
    """
    from seqtune.models.location import check_there
    from seqtune.sections import ModelConfig

    _check_files(texts, file, out, alone=not (adapter and (file or out or grid)))
    in_shards = _is_folder(out, shards or shard_rows or ray, file, grid)
    flags = overrides(
        settings, decode__num_beams=num_beams, decode__num_return=num_return, decode__length_penalty=length_penalty,
        decode__max_new_tokens=max_new_tokens, decode__verify=verify, decode__abstain=abstain, decode__engine=engine,
    )  # fmt: skip
    read_only(flags, ("decode.", *READ), "predict")
    data, decode = reading(flags), section(flags, "decode")
    check_there(ModelConfig(name=run))  # before torch is loaded
    from seqtune.decoding.predictor import Predictor

    trusted = tuple(trust_remote_code or ())
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] - an input that is no text is shown as it came
    if adapter:
        _print_beside(Predictor.over(run, adapter, decode, trusted), texts, as_json)
        return
    if file:
        from seqtune.procedures.evaluate import Questions

        questions = Questions(file, input, None, data, decode, task, trusted=trusted)
        if in_shards:
            _in_shards(run, questions, (shards, shard_rows, not no_escape), Path(str(out)), ray, as_json)
            return
        predictor, answers = _from_table(run, questions)
    else:
        predictor = Predictor.of_run(run, decode, task, trusted)
        answers = _from_lines(predictor, texts)
    _give(answers, predictor, (grid, out, not no_escape), as_json)


def _give(
    answers: Iterable[Prediction], predictor: Predictor, places: tuple[str | None, str | None, bool], as_json: bool
) -> None:
    """Draw the answers, write them or print them."""
    grid, out, escape = places
    if grid:
        answers = _drawn(predictor, answers, Path(grid))
    if out:
        _write(answers, Path(out), escape=escape)
    else:
        _print_all(answers, predictor, as_json)


def _check_files(texts: list[str] | None, file: str | None, out: str | None, *, alone: bool) -> None:
    from seqtune.errors import ConfigError

    if not alone:
        raise ConfigError("--adapter answers texts or stdin, printed beside each other; not --file, --out or --grid")
    if file and texts:
        raise ConfigError("give texts or --file, not both")
    if out and Path(out).suffix not in (*OUT_KINDS, ""):
        raise ConfigError(f"--out {out!r}: a file must end in {', '.join(OUT_KINDS)}; a name without an ending is a folder")
    if file and out and Path(out).exists() and Path(file).exists() and Path(file).samefile(out):
        raise ConfigError(f"--out {out!r} is the table that is read; name another file")


def _is_folder(out: str | None, asked: object, file: str | None, grid: str | None) -> bool:
    """True for answers in shards.

    Raises:
        ConfigError: what is asked for does not go together.
    """
    from seqtune.errors import ConfigError

    if out is None or Path(out).suffix:
        if asked:
            raise ConfigError("--shards, --shard-rows and --ray are for --out FOLDER, a name without an ending")
        return False
    if file is None:
        raise ConfigError(f"--out {out!r} is a folder of shards, which answers a table: give it with --file")
    if grid:
        raise ConfigError("--grid draws the answers of one call, not those of shards")
    return True


def _write(answers: Iterable[Prediction], out: Path, *, escape: bool) -> None:
    from seqtune.report.answer_table import write_answer_table
    from seqtune.runs import write_predictions

    out.parent.mkdir(parents=True, exist_ok=True)
    predictions = list(answers)
    if out.suffix == ".jsonl":
        write_predictions(out, predictions)
    else:
        write_answer_table(out, predictions, escape=escape)
    print(f"{len(predictions):,} answers: {out}", file=sys.stderr)
    _print_status(Counter(p.status for p in predictions))


def _print_status(found: Counter[str]) -> None:
    for status, count in found.items():
        if status not in ("ok", "verified"):
            print(f"{count:,} of them {explained(status)}", file=sys.stderr)


def _from_table(run: str, questions: Questions) -> tuple[Predictor, Iterator[Prediction]]:
    from seqtune.decoding.predictor import predict_with_progress
    from seqtune.procedures.predict import predictor_of, rows_of

    predictor = predictor_of(run, questions)
    found, rejected, said = rows_of(predictor, questions)
    for line in said:
        print(line, file=sys.stderr)
    for row in rejected:
        print(f"skipped: {row.file}, line {row.line}: {row.reason}", file=sys.stderr)
    rows = list(found)
    answers = zip(rows, predict_with_progress(predictor, rows, "predict"), strict=True)
    return predictor, (dataclasses.replace(answer, fields=row.fields) for row, answer in answers)


def _in_shards(
    run: str, questions: Questions, files: tuple[str | None, int | None, bool], out: Path, ray: str | None, as_json: bool
) -> None:
    from seqtune.procedures.predict import SHARD_ROWS, Shards, answer_in_shards

    kind, rows, escape = files
    shards = Shards(f".{kind or 'jsonl'}", SHARD_ROWS if rows is None else rows, escape)
    answered = answer_in_shards(run, questions, shards, out, ray=ray)
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(answered)})
        return
    there = f", {answered.num_found:,} of them were there already" if answered.num_found else ""
    print(f"{answered.num_rows:,} answers in {answered.num_shards:,} files{there}: {out}", file=sys.stderr)
    _print_status(answered.status)


def _from_lines(predictor: Predictor, texts: list[str] | None) -> Iterator[Prediction]:
    from seqtune.records import Example

    chunk_size = CHUNK
    if not texts and sys.stdin.isatty():
        print("reading stdin, one input a line; Ctrl-D ends it", file=sys.stderr)
        chunk_size = 1
    lines = iter(texts) if texts else _stdin_lines()
    numbered = (Example(str(i), text, None) for i, text in enumerate(lines, start=1))
    while chunk := [e for _, e in zip(range(chunk_size), numbered, strict=False)]:
        yield from predictor.predict(chunk)


def _print_beside(predictors: Iterator[tuple[str, Predictor]], texts: list[str] | None, as_json: bool) -> None:
    """The answers of one adapter after the other to the same inputs."""
    asked = texts or list(_stdin_lines())
    for name, predictor in predictors:
        _print_all(_from_lines(predictor, asked), predictor, as_json, name)


def _print_all(answers: Iterable[Prediction], predictor: Predictor, as_json: bool, adapter: str = "") -> None:
    for number, prediction in enumerate(answers, start=1):
        _print(prediction, number, as_json, predictor.decode.num_return > 1, adapter)


def _stdin_lines() -> Iterator[str]:
    """Lines of stdin; a byte that is no UTF-8 stays in its line, so that one answer is missing and not all."""
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    return (line.rstrip("\r\n") for line in sys.stdin)


def _drawn(predictor: Predictor, answers: Iterable[Prediction], path: Path) -> list[Prediction]:
    from seqtune import plugins
    from seqtune.errors import ConfigError

    pack = predictor.task.pack
    if pack is None or pack.draw is None:
        raise ConfigError("--grid: this task's answers cannot be drawn; it needs a task of a pack that draws, such as chem")
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions = list(answers)
    plugins.load(pack.draw)(predictions, path)
    return predictions


def _print(prediction: Prediction, number: int, as_json: bool, several: bool, adapter: str = "") -> None:
    if as_json:
        record = prediction.to_dict() | ({"adapter": adapter} if adapter else {})
        print(json.dumps(record, ensure_ascii=False), flush=True)
        return
    before = f"{adapter}\t" if adapter else ""
    if prediction.status not in ("ok", "verified"):
        print(f"input {number}: {explained(prediction.status)}", file=sys.stderr)
    if not several or not prediction.hypotheses:
        print(before + prediction.prediction, flush=True)
        return
    for hypothesis in prediction.hypotheses:
        print(f"{before}{number}\t{hypothesis.score:.4f}\t{hypothesis.text}", flush=True)
