"""`seqtune doctor`."""

from __future__ import annotations

import sys

from seqtune.cli.app import JsonOption, app, print_json


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Report the environment: versions, devices, extras that are missing and how to get them.

    [bold]Example[/bold]: seqtune doctor --json
    """
    from seqtune.doctor import examine

    facts = examine()
    if as_json:
        print_json(facts)
        return
    from rich.console import Console

    out = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    for section, entries in facts.items():
        out.print(f"[bold]{section}[/bold]")
        for name, value in entries.items():
            missing = isinstance(value, str) and value.startswith("missing")
            out.print(f"  {name}: {value}", style="yellow" if missing else None, markup=False)
