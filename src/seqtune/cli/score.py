"""`seqtune score`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import BaselinesOption, JsonOption, TaskOption, app, print_json, print_metrics


@app.command()
def score(
    predictions: Annotated[
        str,
        typer.Argument(
            metavar="PREDICTIONS", help="JSONL, CSV or TSV with prediction and reference, or a folder or zip with such JSONL."
        ),
    ],
    output: Annotated[str | None, typer.Option("--output", help="Column with what is right; default: reference.")] = None,
    task: TaskOption = None,
    train: Annotated[str | None, typer.Option("--train", help="Training table, for the nearest-row baseline.")] = None,
    no_baselines: BaselinesOption = False,
    out: Annotated[str | None, typer.Option("--out", help="Also write the scores here (JSON).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score predictions; no model is needed or loaded.

    [bold]Example[/bold]: seqtune score runs/names/predictions.jsonl --task chem:smiles-to-iupac
    """
    from pathlib import Path

    from seqtune.config import load_config
    from seqtune.data.sources import read_examples
    from seqtune.data.tasks import Task
    from seqtune.runs import write_json
    from seqtune.scoring.evaluate import evaluate_task, read_archive, read_predictions

    config = load_config(None, {"task": task} if task else {})
    training = read_examples(train, config.data)[0] if train else []
    reference = output or "reference"
    several = Path(predictions).suffix.lower() == ".zip"
    files = read_archive(predictions, reference) if several else {predictions: read_predictions(predictions, reference)}
    found = {
        name: evaluate_task(items, Task.from_config(config), None if no_baselines else training)[0]
        for name, items in files.items()
    }
    result = found if several else found[predictions]
    if out:
        write_json(Path(out), result)
    if as_json:
        print_json(result)
        return
    for name, metrics in found.items():
        print_metrics(metrics, f"{metrics['num_items']} predictions" + (f" of {name}" if several else ""))
