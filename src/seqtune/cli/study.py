"""`seqtune study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seqtune.cli.app import JsonOption, TrustOption, app, print_json, stdout_console


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Base settings, axes or a search, seeds and budget.")],
    plan: Annotated[bool, typer.Option("--plan", help="Print the points and the time they will take, run nothing.")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Points run at once.")] = None,
    ray: Annotated[str | None, typer.Option("--ray", help="Run points on this Ray cluster: an address, or local.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Run nothing; how many examples would it take? METRIC=SCORE.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Run nothing; zip what others need to score it all again: FILE.zip.")
    ] = None,
    trust_remote_code: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run what a study still lacks, tabulate all of it and write its report; the same command goes on after a stop.

    [bold]Example[/bold]: seqtune study studies/paper/adapters-small.yaml --plan
    """
    from seqtune.studies.archive import carbon_copy
    from seqtune.studies.points import load_study

    loaded = load_study(file, trust_remote_code or ())
    if jobs:
        loaded = loaded.model_copy(update={"jobs": jobs})
    if plan:
        _plan(loaded, as_json)
    elif target:
        _examples_for(Path(loaded.out), target, as_json)
    elif export:
        count = carbon_copy(loaded, export)
        print_json({"out": str(export), "points": count}) if as_json else print(f"{export}: {count} points")
    else:
        _run(loaded, ray, as_json)


def _run(loaded: Any, ray: str | None, as_json: bool) -> None:
    from seqtune.report.page import write_report
    from seqtune.studies import conduct

    outcome = conduct.run(loaded, ray=ray)
    page = write_report(outcome.folder)
    if as_json:
        print_json({"out": str(outcome.folder), "points": outcome.results.height, "failures": outcome.failures})
        return
    _show(outcome.folder)
    for failure in outcome.failures:
        print(f"failed: {failure['point']}: {failure['error']}")
    print(f"{outcome.results.height} points: {outcome.folder}/results.csv, summary.csv, comparisons.csv; {page}")


def _plan(loaded: Any, as_json: bool) -> None:
    from seqtune import progress
    from seqtune.studies import points as grid
    from seqtune.studies.times import seconds_left

    points = grid.plan(loaded)
    seconds = seconds_left(points, loaded.jobs)
    notes = grid.shared_prefixes(points)
    rows = [p.values | {"done": grid.is_done(p), "run": str(p.run)} for p in points]
    if as_json:
        print_json(
            {"points": rows, "estimated_seconds": seconds, "notes": notes, "trials": loaded.search and loaded.search.trials}
        )
        return
    for row in rows:
        print("  ".join(f"{k}={v}" for k, v in row.items()))
    for note in notes:
        print(note)
    if loaded.search:
        print(f"a search of {loaded.search.trials} points, chosen as the results come in")
        return
    left = "unknown until a point is done" if seconds is None else progress.remaining(seconds)
    print(f"{len(rows)} points, {sum(r['done'] for r in rows)} done; time left with {loaded.jobs} at once: {left}")


def _examples_for(folder: Path, target: str, as_json: bool) -> None:
    from seqtune.report.study_page import examples_for

    rows = examples_for(folder, target)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(row["text"])


def _show(folder: Path) -> None:
    """What was varied, the two leading scores and what it took; the rest is in the files."""
    import polars
    from rich.table import Table

    from seqtune.studies.tables import SCORES, short

    summary = polars.read_csv(folder / "summary.csv")
    axes = [c for c in summary.columns[: summary.columns.index("seeds")] if summary[c].n_unique() > 1]
    scores = [c for c in SCORES if c in summary.columns][:2]
    costs = [c for c in ("steps", "seconds", "cpu_share") if c in summary.columns and summary[c].null_count() < summary.height]
    table = Table()
    for name in [*axes, *scores, *costs]:
        table.add_column(name.rpartition(".")[2].replace("_", " "), justify="right")
    for row in summary.iter_rows(named=True):
        cells = [short(row[c]) for c in axes] + ["-" if row[c] is None else f"{row[c]:.3f}" for c in scores]
        table.add_row(*cells, *("-" if row[c] is None else f"{row[c]:,.4g}" for c in costs))
    stdout_console().print(table)
