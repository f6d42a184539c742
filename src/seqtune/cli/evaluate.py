"""`seqtune evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seqtune.cli.app import (
    AbstainOption,
    BaselinesOption,
    BeamsOption,
    EngineOption,
    InputOption,
    JsonOption,
    OutputOption,
    ReturnOption,
    SetOption,
    TaskOption,
    TrustOption,
    VerifyOption,
    app,
    is_config,
    overrides,
    print_json,
    print_metrics,
    read_only,
    reading,
    section,
    stdout_console,
)

READ = (
    "data.encoding",
    "data.delimiter",
    "data.quote",
    "data.header",
    "data.sheet",
    "data.id",
    "data.num_examples",
    "data.split.seed",
    "data.max_input_characters",
    "data.max_output_characters",
    "data.max_cell_characters",
    "data.max_rejected",
)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hub id.")],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A table with references, a run (its test rows again), or a mixture.")
    ],
    out: Annotated[str | None, typer.Option("--out", help="Folder for metrics.json and predictions.jsonl.")] = None,
    input: InputOption = None,
    output: OutputOption = None,
    num_beams: BeamsOption = None,
    num_return: ReturnOption = None,
    task: TaskOption = None,
    verify: VerifyOption = None,
    abstain: AbstainOption = None,
    no_baselines: BaselinesOption = False,
    engine: EngineOption = None,
    shots: Annotated[list[int] | None, typer.Option("--shots", min=0, max=32, help="Mixture: so many solved examples.")] = None,
    against: Annotated[list[str] | None, typer.Option("--against", help="Mixture: beside `base`, a run or a model.")] = None,
    singles: Annotated[
        str | None, typer.Option("--singles", help="Mixture: train on each task alone, for as many steps, in this folder.")
    ] = None,
    trust_remote_code: TrustOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict a table's inputs and score them against its outputs; or every task of a mixture.

    [bold]Example[/bold]: seqtune evaluate runs/names test.tsv --num-beams 5 --out runs/names/test
    """
    flags = overrides(
        settings, decode__num_beams=num_beams, decode__num_return=num_return, decode__verify=verify, decode__abstain=abstain,
        decode__engine=engine,
    )  # fmt: skip
    mixed = {"--shots": shots, "--against": against, "--singles": singles}
    if is_config(data):
        read_only(flags, ("mixture.",), "evaluate RUN MIXTURE")
        _refuse({"--input": input, "--output": output, "--task": task}, "a mixture's tasks bring their own")
        settings_of = tuple(flags.items())
        _evaluate_mixture(run, data, (shots, against, singles, settings_of, trust_remote_code), out, as_json)
        return
    _refuse(mixed, f"it is for a mixture (YAML), and {data!r} is none")
    read_only(flags, ("decode.", *READ), "evaluate")
    from pathlib import Path

    from seqtune.models.location import check_there
    from seqtune.sections import ModelConfig

    check_there(ModelConfig(name=run))  # before torch is loaded
    from seqtune.procedures.evaluate import Questions
    from seqtune.procedures.evaluate import evaluate as procedure

    trusted = tuple(trust_remote_code or ())
    questions = Questions(data, input, output, reading(flags), section(flags, "decode"), task, not no_baselines, trusted)
    metrics = procedure(run, questions, Path(out) if out else None)
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics, f"{metrics['num_items']} rows of {data}")


def _refuse(options: dict[str, Any], why: str) -> None:
    """Complain about the first option that was given."""
    from seqtune.errors import ConfigError

    for name, value in options.items():
        if value:
            raise ConfigError(f"{name}: {why}; leave it out")


def _evaluate_mixture(run: str, mixture: str, options: tuple[Any, ...], out: str | None, as_json: bool) -> None:
    """Score every task of a mixture, and what the run is compared with."""
    from pathlib import Path

    from seqtune.procedures.protocol import Protocol, score_tasks

    shots, against, singles, settings, trusted = options
    protocol = Protocol(
        mixture, tuple(dict.fromkeys(shots or (0,))), tuple(against or ()), Path(singles) if singles else None, settings,
        tuple(trusted or ()),
    )  # fmt: skip
    result = score_tasks(run, protocol, Path(out) if out else None)
    if as_json:
        print_json(result)
        return
    for k in map(str, result["shots"]):
        _print_table(f"{k} solved examples", {label: found[k] for label, found in result["scores"].items()})


def _print_table(title: str, found: dict[str, Any]) -> None:
    """Tasks, and below them the unweighted means of clusters, with a column for each model."""
    from rich.table import Table

    labels, first = list(found), next(iter(found.values()))
    for key, kind in (("task", "tasks"), ("cluster", "clusters")):
        said = kind if key == "task" else "unweighted means of tasks"
        table = Table(title=f"{title}: {said}", title_justify="left")
        for heading in (key, "", "metric" if key == "task" else "tasks", *labels):
            table.add_column(heading, justify="right" if heading in labels else "left", no_wrap=True)
        for row in first[kind]:
            same = (next((r for r in found[label][kind] if _same(r, row, key)), None) for label in labels)
            size = f"{row['metric']} of {row['num_items']}" if key == "task" else str(row["num_tasks"])
            table.add_row(row[key], "held out" if row["held_out"] else "trained", size, *map(_cell, same))
        stdout_console().print(table)


def _same(a: dict[str, Any], b: dict[str, Any], key: str) -> bool:
    return a[key] == b[key] and a["held_out"] == b["held_out"]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "" if row is None else "undefined"
    return f"{row['value']:.3f}" + ("" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})")
