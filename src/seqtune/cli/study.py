"""`seqtune study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json, stdout_console


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Base settings, axes, seeds and budget.")],
    plan: Annotated[bool, typer.Option("--plan", help="Print the points and the time they will take, run nothing.")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Points run at once.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Run nothing; zip what others need to score it all again: FILE.zip.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run every point of a study that has not been run yet, and tabulate all of them; the same command goes on after a stop.

    [bold]Example[/bold]: seqtune study studies/paper/adapters-small.yaml --plan
    """
    from seqtune import progress, studies

    loaded = studies.load_study(file)
    if jobs:
        loaded = loaded.model_copy(update={"jobs": jobs})
    if plan:
        points = studies.plan(loaded)
        seconds = studies.estimate(points)
        rows = [p.values | {"done": studies.is_done(p), "run": str(p.run)} for p in points]
        if as_json:
            print_json({"points": rows, "estimated_seconds": seconds})
            return
        for row in rows:
            print("  ".join(f"{k}={v}" for k, v in row.items()))
        left = "unknown until a point is done" if seconds is None else progress.remaining(seconds / loaded.jobs)
        print(f"{len(rows)} points, {sum(r['done'] for r in rows)} done; time left: {left}")
        return
    if export:
        print(f"{export}: {studies.carbon_copy(loaded, export)} points")
        return
    outcome = studies.run(loaded)
    if as_json:
        print_json({"out": str(outcome.folder), "points": outcome.results.height, "failures": outcome.failures})
        return
    _show(outcome.folder)
    for failure in outcome.failures:
        print(f"failed: {failure['point']}: {failure['error']}")
    print(f"{outcome.results.height} points: {outcome.folder}/results.csv, summary.csv")


def _show(folder: Path) -> None:
    import polars
    from rich.table import Table

    summary = polars.read_csv(folder / "summary.csv")
    shown = [c for c in summary.columns if not c.endswith(("_low", "_high"))]
    table = Table()
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for row in summary.iter_rows(named=True):
        table.add_row(*(f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in shown))
    stdout_console().print(table)
