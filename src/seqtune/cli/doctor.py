"""`seqtune doctor`."""

from __future__ import annotations

from seqtune.cli.app import JsonOption, app, print_json, stdout_console


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Report the environment: versions, devices, extras that are missing and how to get them.

    [bold]Example[/bold]: seqtune doctor --json
    """
    from seqtune.procedures.doctor import examine

    facts = examine()
    if as_json:
        print_json(facts)
        return

    out = stdout_console()
    for section, entries in facts.items():
        out.print(f"[bold]{section}[/bold]")
        for name, value in entries.items():
            missing = isinstance(value, str) and value.startswith("missing")
            out.print(f"  {name}: {value}", style="yellow" if missing else None, markup=False)
