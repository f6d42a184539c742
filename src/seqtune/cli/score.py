"""`seqtune score`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import BaselinesOption, JsonOption, TaskOption, app, print_json, print_metrics


@app.command()
def score(
    predictions: Annotated[str, typer.Argument(metavar="PREDICTIONS.jsonl", help="Lines with prediction, reference.")],
    task: TaskOption = None,
    train: Annotated[str | None, typer.Option("--train", help="Training table, for the nearest-row baseline.")] = None,
    no_baselines: BaselinesOption = False,
    out: Annotated[str | None, typer.Option("--out", help="Also write the scores here (JSON).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a predictions file; no model is needed or loaded.

    [bold]Example[/bold]: seqtune score runs/names/predictions.jsonl --task chem:smiles-to-iupac
    """
    from pathlib import Path

    from seqtune.config import load_config
    from seqtune.data.sources import read_examples
    from seqtune.data.tasks import Task
    from seqtune.runs import write_json
    from seqtune.scoring.evaluate import evaluate_task, read_predictions

    config = load_config(None, {"task": task} if task else {})
    training = read_examples(train, config.data)[0] if train else []
    metrics, _ = evaluate_task(read_predictions(predictions), Task.from_config(config), None if no_baselines else training)
    if out:
        write_json(Path(out), metrics)
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics, f"{metrics['num_items']} predictions")
