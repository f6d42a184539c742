"""`seqtune fit`."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtune.cli.app import (
    InputOption,
    JsonOption,
    OutputOption,
    SetOption,
    TaskOption,
    TrustOption,
    answer_text,
    app,
    overrides,
    print_json,
    print_metrics,
    print_unusual,
    stdout_console,
)
from seqtune.errors import ConfigError

if TYPE_CHECKING:
    from seqtune.config import Config


@app.command()
def fit(
    config: Annotated[str | None, typer.Argument(metavar="[CONFIG.yaml]", help="Settings file.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="CSV, TSV, JSONL or Parquet, or hf://datasets/...")] = None,
    mixture: Annotated[str | None, typer.Option("--mixture", help="Many tasks instead: their YAML file.")] = None,
    input: InputOption = None,
    output: OutputOption = None,
    task: TaskOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Hub id, folder, FILE.gguf, package:NAME, builtin:base.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    settings: SetOption = None,
    trust_remote_code: TrustOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    ray: Annotated[str | None, typer.Option("--ray", help="Train on this Ray cluster: an address, or local.")] = None,
    num_workers: Annotated[int | None, typer.Option("--num-workers", min=1, help="With --ray: processes at most.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved settings.")] = False,
    print_schema: Annotated[bool, typer.Option("--print-schema", help="Show the settings' JSON Schema.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="End with every score and how it was computed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model on a table of pairs and measure it on held-out rows.

    [bold]Example[/bold]: seqtune fit --data pairs.csv --input smiles --output iupac --out runs/names
    """
    from seqtune.config import Config, load_config
    from seqtune.models.location import check_there

    if print_schema:
        print_json(Config.model_json_schema())
        return
    where = _where(ray, num_workers)
    flags = overrides(
        settings, mixture=mixture, data__path=data, data__input=input, data__output=output, model__name=model, task=task,
        out=out, model__trust_remote_code=trust_remote_code,
    )  # fmt: skip
    resolved = load_config(config, flags)
    if print_config:
        print(resolved.to_yaml(), end="")
        return
    check_there(resolved.model)  # before torch is loaded
    main = os.environ.get("RANK", "0") == "0"  # under torchrun the first process speaks for all
    if main:
        resolved = _introduced(resolved)
    from seqtune.procedures.fit import fit as procedure
    from seqtune.procedures.fit import run_folder
    from seqtune.runs import check_outside

    if overwrite:
        check_outside(run_folder(resolved), [config])
    if where:
        from seqtune import plugins

        procedure = partial(plugins.load("seqtune.procedures.fit_on_cluster:fit_on_cluster", "fit --ray"), **where)
    fitted = procedure(resolved, resume=resume, overwrite=overwrite, report=not as_json)
    if not main:
        return
    if as_json:
        print_json({"run": str(fitted.folder), "outcome": fitted.outcome, "metrics": fitted.metrics})
        return
    if verbose and fitted.metrics:
        print_metrics(fitted.metrics, f"{fitted.metrics['num_items']} held-out rows")
    _tell(fitted.folder)


def _where(ray: str | None, num_workers: int | None) -> dict[str, Any]:
    """On which cluster to train, and in how many processes; nothing for here."""
    if (ray is None) != (num_workers is None):
        raise ConfigError("--ray ADDRESS and --num-workers N go together: where, and in how many processes at most")
    return {} if ray is None else {"address": ray, "num_workers": num_workers}


def _introduced(config: Config) -> Config:
    """Say what is about to be done; the configuration with the columns that were found."""
    from seqtune.data.columns import with_columns

    table, notes = config.data.path or "", []
    if config.mixture or table.startswith("hf://") or Path(table).exists():
        # of several processes, none may end before all have met: the others would wait for it
        if os.environ.get("WORLD_SIZE", "1") == "1":
            config, notes = with_columns(config)
        print("\n".join([_opening(config), *notes]), file=sys.stderr, flush=True)
    return config


def _opening(config: Config) -> str:
    """What is about to be done, from which file."""
    from rich.filesize import decimal

    path = Path(config.data.path or "")
    size = f" ({decimal(path.stat().st_size)})" if path.is_file() else ""
    if config.mixture:
        return f"fine-tuning {config.model.name} on a mixture of {len(config.mixture.tasks)} tasks"
    columns = "" if config.data.layout not in ("auto", "pairs") else f", {config.data.input} -> {config.data.output}"
    return f"fine-tuning {config.model.name} on {config.data.path}{size}{columns}"


def _tell(run: Path) -> None:
    """How good it is, five answers, and what can be done next."""
    from seqtune.procedures.story import ending
    from seqtune.report.page import write_report

    out = stdout_console()
    story = ending(run)
    if story:
        out.print(story.sentence, markup=False)
        out.print(f"{len(story.samples)} held-out rows, drawn by hash:")
        for sample in story.samples:
            out.print(answer_text(sample, plain=out.color_system is None))
        print_unusual(story.metrics, out)
        page = run / "report.html"
        out.print(
            f"report with every wrong answer: {page if page.exists() else write_report(run)}", markup=False, soft_wrap=True
        )
    else:
        out.print("no test rows were held out, so nothing is known about other inputs", style="yellow")
    out.print("and then:")
    folder, settings, longer = (shlex.quote(name) for name in (str(run), f"{run}/config.yaml", f"{run}-longer"))
    for command in (
        f"seqtune predict {folder} TEXT",
        f"seqtune serve {folder}",
        f"seqtune fit {settings} --model {folder} --out {longer}",
    ):
        out.print(f"  {command}", markup=False, soft_wrap=True)
