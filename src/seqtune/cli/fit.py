"""`seqtune fit`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from seqtune.cli.app import (
    InputOption,
    JsonOption,
    OutputOption,
    SetOption,
    TaskOption,
    TrustOption,
    app,
    overrides,
    print_json,
    print_metrics,
)


@app.command()
def fit(
    config: Annotated[str | None, typer.Argument(metavar="[CONFIG.yaml]", help="Settings file.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="CSV, TSV, JSONL or Parquet, or hf://datasets/...")] = None,
    input: InputOption = None,
    output: OutputOption = None,
    task: TaskOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Hub id, folder, FILE.gguf, package:NAME, builtin:base.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    settings: SetOption = None,
    trust_remote_code: TrustOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved settings.")] = False,
    print_schema: Annotated[bool, typer.Option("--print-schema", help="Show the settings' JSON Schema.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model on a table of pairs and measure it on held-out rows.

    [bold]Example[/bold]: seqtune fit --data pairs.csv --input smiles --output iupac --out runs/names
    """
    from seqtune.config import Config, load_config

    if print_schema:
        print_json(Config.model_json_schema())
        return
    flags = overrides(
        settings, data__path=data, data__input=input, data__output=output, model__name=model, task=task, out=out,
        model__trust_remote_code=trust_remote_code,
    )  # fmt: skip
    resolved = load_config(config, flags)
    if print_config:
        print(resolved.to_yaml(), end="")
        return
    from seqtune.procedures.fit import fit as procedure
    from seqtune.procedures.fit import run_folder
    from seqtune.runs import check_outside

    if overwrite:
        check_outside(run_folder(resolved), [config])
    fitted = procedure(resolved, resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
        return
    if as_json:
        print_json({"run": str(fitted.folder), "outcome": fitted.outcome, "metrics": fitted.metrics})
        return
    if fitted.metrics:
        print_metrics(fitted.metrics, f"{fitted.metrics['num_items']} held-out rows")
    print(f"run folder: {fitted.folder}")
