"""`seqtune push`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, TrustOption, app, print_json


@app.command()
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run folder.")],
    target: Annotated[str, typer.Argument(metavar="OWNER/NAME|FOLDER", help="A repository on the hub, or a folder to write.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a public repository; private without it.")] = False,
    trust_remote_code: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run as a folder for the Hugging Face hub, and upload it if it is asked for.

    [bold]Example[/bold]: seqtune push runs/names me/names
    """
    import tempfile
    from pathlib import Path

    from seqtune import progress
    from seqtune.errors import RunError
    from seqtune.procedures import push as procedure

    name = procedure.on_hub(target)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model" if name else Path(target).expanduser()
        facts = procedure.write(Path(run), folder, name or folder.name, trust_remote_code or ())
        out = progress.console()
        for path, size in facts["files"].items():
            out.print(f"{size:>14,} bytes  {path}", markup=False, highlight=False)
        if facts["licence"] is None:
            warning = "the base's licence is not known here; look it up, and write it into README.md, before you share this"
            out.print(f"warning: {warning}", style="yellow", markup=False)
        address = None
        if name:
            kind = "public" if public else "private"
            size = sum(facts["files"].values()) / 1e6
            question = f"upload these {len(facts['files'])} files ({size:.1f} MB) to {name} on the hub ({kind} if it is new)?"
            if not (yes or progress.confirmed(question)):
                raise RunError("nothing was uploaded; say yes to the question, or add --yes; or name a folder: ./NAME")
            address = procedure.upload(folder, name, public=public)
    if as_json:
        print_json({"target": target, "address": address, **facts})
        return
    print(address or f"{target}: hf upload OWNER/NAME {target} uploads it")
