"""`seqtune evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import (
    AbstainOption,
    BaselinesOption,
    BeamsOption,
    EngineOption,
    InputOption,
    JsonOption,
    OutputOption,
    ReturnOption,
    SetOption,
    TaskOption,
    VerifyOption,
    app,
    overrides,
    print_json,
    print_metrics,
)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hub id.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table with references.")],
    out: Annotated[str | None, typer.Option("--out", help="Folder for metrics.json and predictions.jsonl.")] = None,
    input: InputOption = None,
    output: OutputOption = None,
    num_beams: BeamsOption = None,
    num_return: ReturnOption = None,
    task: TaskOption = None,
    verify: VerifyOption = None,
    abstain: AbstainOption = None,
    no_baselines: BaselinesOption = False,
    engine: EngineOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict a table's inputs and score them against its outputs.

    [bold]Example[/bold]: seqtune evaluate runs/names test.tsv --num-beams 5 --out runs/names/test
    """
    from seqtune.config import load_config

    decode = overrides(
        settings,
        decode__num_beams=num_beams,
        decode__num_return=num_return,
        decode__verify=verify,
        decode__abstain=abstain,
        decode__engine=engine,
    )
    config = load_config(None, decode)
    from pathlib import Path

    from seqtune import runs
    from seqtune.data.sources import check_rejected_share, read_examples
    from seqtune.decoding.predictor import Predictor, predict_with_progress
    from seqtune.scoring.evaluate import evaluate_task
    from seqtune.tokens.preparation import training_rows, within_limits

    predictor = Predictor.load(run, config.decode, task)
    columns = {"input": input or predictor.task.input, "output": output or predictor.task.output}
    settings_for_data = config.data.model_copy(update=columns)
    examples, bad = read_examples(data, settings_for_data)
    if bad:
        check_rejected_share(len(bad), len(examples) + len(bad), config.data.max_rejected, bad[0])
    examples = [e for e in examples if within_limits(e, settings_for_data)][: config.data.num_examples]
    predictions = predict_with_progress(predictor, examples, "evaluate")
    training = None if no_baselines else training_rows(Path(run))
    metrics, predictions = evaluate_task(predictions, predictor.task, training)
    if out:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        runs.write_predictions(folder / "predictions.jsonl", predictions)
        runs.write_rejected(folder / "rejected.jsonl", bad)
        runs.write_json(folder / "metrics.json", metrics)
        predictor.task.save(folder / "task.yaml")
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics, f"{len(predictions)} rows of {data}")
