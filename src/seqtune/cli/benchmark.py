"""`seqtune benchmark`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, TrustOption, app, print_json, stdout_console


@app.command()
def benchmark(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder, hub id, package:NAME.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks or groups, with commas between: mmlu,arc_easy.")],
    num_fewshot: Annotated[int | None, typer.Option("--num-fewshot", min=0, help="Examples in each prompt.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many items of each task only.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Folder with data sets as they lie on the hub.")] = None,
    include: Annotated[str | None, typer.Option("--include", help="Folder with tasks of your own (YAML).")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the model's chat template.")] = False,
    trust_remote_code: TrustOption = None,
    out: Annotated[str | None, typer.Option("--out", help="Write all that the harness reports here (JSON).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run on standard benchmarks, through lm-evaluation-harness.

    [bold]Example[/bold]: seqtune benchmark runs/names --tasks mmlu --num-fewshot 5 --data datasets
    """
    from dataclasses import asdict
    from importlib.util import find_spec
    from pathlib import Path

    from rich.table import Table

    from seqtune.errors import DataError, MissingDependencyError
    from seqtune.runs import write_json

    if find_spec("lm_eval") is None:
        raise MissingDependencyError("lm-eval", "bench-suites", "`seqtune benchmark`")
    for folder in filter(None, (data, include)):
        if not Path(folder).is_dir():
            raise DataError(f"{folder!r} is no folder")
    from seqtune.procedures.benchmark import Suite
    from seqtune.procedures.benchmark import benchmark as score

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    places = [None if folder is None else Path(folder) for folder in (data, include)]
    scores, report = score(run, Suite(names, num_fewshot, limit, *places, chat=chat), trust_remote_code or ())
    if out:
        write_json(Path(out), {"results": report["results"], "scores": [asdict(s) for s in scores]})
    if as_json:
        print_json([asdict(s) for s in scores])
        return
    table = Table()
    for heading in ("task", "metric", "value", "95% interval", "items", "shots"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right", no_wrap=True)
    for s in scores:
        interval = "" if s.error is None else f"{s.value - 1.96 * s.error:.4f} to {s.value + 1.96 * s.error:.4f}"
        shots = "" if s.num_shots is None else str(s.num_shots)
        table.add_row(s.task, s.metric, f"{s.value:.4f}", interval, str(s.num_items or ""), shots)
    stdout_console().print(table)
