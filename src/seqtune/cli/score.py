"""`seqtune score`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json, print_metrics


@app.command()
def score(
    predictions: Annotated[str, typer.Argument(metavar="PREDICTIONS.jsonl", help="Lines with prediction, reference.")],
    out: Annotated[str | None, typer.Option("--out", help="Also write the scores here (JSON).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a predictions file; no model is needed or loaded.

    [bold]Example[/bold]: seqtune score runs/names/predictions.jsonl
    """
    from pathlib import Path

    from seqtune.evaluate import evaluate, read_predictions
    from seqtune.runs import write_json

    metrics = evaluate(read_predictions(predictions))
    if out:
        write_json(Path(out), metrics)
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics, f"{metrics['num_items']} predictions")
