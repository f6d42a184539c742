"""`seqtune bases`."""

from __future__ import annotations

from seqtune.cli.app import JsonOption, app, print_json, stdout_console


@app.command()
def bases(as_json: JsonOption = False) -> None:
    """List pretrained bases: size, licence, and whether they are installed or the line that gets them.

    [bold]Example[/bold]: seqtune bases
    """
    from dataclasses import asdict

    from seqtune.procedures.bases import known_bases

    found = known_bases()
    if as_json:
        print_json([asdict(base) | {"installed": base.is_installed()} for base in found])
        return
    out = stdout_console()
    for base in found:
        out.print(f"{base.name}: {base.about}", markup=False)
        out.print(f"  {base.state()}", style=None if base.is_installed() else "yellow", markup=False)
    out.print(
        "any other causal language model: --model OWNER/NAME (hub), FOLDER, FILE.gguf, hf://OWNER/NAME/FILE.gguf, package:NAME",
        style="dim",
        markup=False,
    )
