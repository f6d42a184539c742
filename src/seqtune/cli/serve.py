"""`seqtune serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json

TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token that requests must bring; needed for other hosts.")
]
CorsOption = Annotated[
    list[str] | None, typer.Option("--cors", metavar="ORIGIN", help="Origin whose pages may ask; may be repeated.")
]


@app.command()
def serve(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run or model folders, or NAME=RUN.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8000,
    token_file: TokenOption = None,
    cors: CorsOption = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Inputs that may wait; more are refused with 429.")] = 1024,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one request.")] = 60.0,
    max_inputs: Annotated[int, typer.Option("--max-inputs", min=1, help="Inputs of one request.")] = 256,
    max_characters: Annotated[int, typer.Option("--max-characters", min=1, help="Characters of one input.")] = 10_000,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Rows of a file that is to be answered.")] = 100_000,
    as_json: JsonOption = False,
) -> None:
    """Serve runs over HTTP: a page at /, /v1/predict, and OpenAI-compatible endpoints, until SIGTERM or Ctrl-C.

    What was taken on is finished at the end. SIGHUP loads anew what has changed on the disk.

    [bold]Example[/bold]: seqtune serve runs/names --port 8000
    """
    from seqtune.errors import MissingDependencyError

    try:
        from seqtune.serving.limits import Limits
        from seqtune.serving.server import Address, read_token, serve
        from seqtune.serving.shelf import named
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
            raise
        raise MissingDependencyError(package.replace("_", "-"), "serve", "seqtune serve") from None

    def tell(url: str, names: list[str]) -> None:
        if as_json:
            print_json({"url": url, "runs": names})
        else:
            print(f"{', '.join(names)}: {url}")
        sys.stdout.flush()

    token = read_token(token_file) if token_file else None
    address = Address(host, port, token, tuple(cors or ()))
    limits = Limits(queue=queue, seconds=timeout, inputs=max_inputs, characters=max_characters, rows=max_rows)
    serve(named(runs), address, limits, tell)
