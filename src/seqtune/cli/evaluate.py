"""`seqtune evaluate`."""

from __future__ import annotations

from typing import Annotated

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
    overrides,
    print_json,
    print_metrics,
    read_only,
    section,
)

READ = (
    "data.delimiter",
    "data.quote",
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
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table with references, or a run: its test rows again.")],
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
    trust_remote_code: TrustOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict a table's inputs and score them against its outputs.

    [bold]Example[/bold]: seqtune evaluate runs/names test.tsv --num-beams 5 --out runs/names/test
    """
    flags = overrides(
        settings,
        decode__num_beams=num_beams,
        decode__num_return=num_return,
        decode__verify=verify,
        decode__abstain=abstain,
        decode__engine=engine,
    )
    read_only(flags, ("decode.", *READ), "evaluate")
    from pathlib import Path

    from seqtune.config import ModelConfig, load_config
    from seqtune.models.location import check_there

    check_there(ModelConfig(name=run))  # before torch is loaded
    from seqtune.procedures.evaluate import Questions
    from seqtune.procedures.evaluate import evaluate as procedure

    config = load_config(None, {key: value for key, value in flags.items() if key.startswith("data.")})
    trusted = tuple(trust_remote_code or ())
    questions = Questions(data, input, output, config.data, section(flags, "decode"), task, not no_baselines, trusted)
    metrics = procedure(run, questions, Path(out) if out else None)
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics, f"{metrics['num_items']} rows of {data}")
