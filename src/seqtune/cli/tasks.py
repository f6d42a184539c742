"""`seqtune tasks`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import BAD_INPUT, JsonOption, app, print_json, stdout_console


@app.command()
def tasks(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[BUNDLE|COLLECTION]...", help="Files, folders or archives; default: installed."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List task bundles and collections of templates that can be mixed, with counts; and what cannot be read, and why.

    [bold]Example[/bold]: seqtune tasks bundles/ templates.tar.gz
    """
    from dataclasses import asdict

    from rich.table import Table

    from seqtune.procedures.tasks import installed, listed

    found = {name: listed(name) for name in names or ()} if names else {"installed packs": (installed(), {})}
    if as_json:
        print_json({n: {"tasks": [asdict(t) for t in known], "unreadable": bad} for n, (known, bad) in found.items()})
        return
    out = stdout_console()
    for name, (known, bad) in found.items():
        table = Table(title=name, title_justify="left")
        for heading in ("task", "format", "templates", "rows", "cluster"):
            table.add_column(heading, justify="right" if heading in ("templates", "rows") else "left", no_wrap=True)
        for task in known:
            rows = "" if task.num_rows is None else f"{task.num_rows:,}"
            table.add_row(task.name, task.format, str(task.num_templates), rows, task.cluster or "")
        out.print(table)
        out.print(f"{name}: {len(known):,} tasks, {sum(t.num_templates for t in known):,} templates", markup=False)
        for what, why in bad.items():
            out.print(f"  not read: {what}: {why}", style="yellow", markup=False)
    if not any(known for known, _ in found.values()):
        raise typer.Exit(BAD_INPUT)
