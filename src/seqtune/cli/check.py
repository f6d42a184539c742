"""`seqtune check`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtune.cli.app import (
    BAD_INPUT,
    InputOption,
    JsonOption,
    OutputOption,
    SetOption,
    TaskOption,
    TrustOption,
    app,
    is_config,
    overrides,
    print_json,
    stdout_console,
)

if TYPE_CHECKING:
    from rich.console import Console


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="DATA|CONFIG|BUNDLE", help="A table, settings, a mixture, a task bundle.")],
    input: InputOption = None,
    output: OutputOption = None,
    task: TaskOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Hub id, folder, FILE.gguf, package:NAME, builtin:base.")] = None,
    settings: SetOption = None,
    trust_remote_code: TrustOption = None,
    rejected: Annotated[str | None, typer.Option("--rejected", help="Write the rejected rows here (JSONL).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would be trained on, coloured by loss, and what looks wrong; exit code 1 on errors.

    [bold]Example[/bold]: seqtune check pairs.csv --input smiles --output iupac
    """
    from seqtune.config import load_config
    from seqtune.data.bundles import kind_of

    kind = kind_of(data)
    if kind == "bundle":
        _show_bundle(data, as_json)
        return
    mixture = data if kind == "mixture" else None
    path = None if is_config(data) else data
    flags = overrides(
        settings, mixture=mixture, data__path=path, data__input=input, data__output=output, model__name=model, task=task,
        model__trust_remote_code=trust_remote_code,
    )  # fmt: skip
    config = load_config(data if is_config(data) and not mixture else None, flags)
    from pathlib import Path

    from seqtune import runs
    from seqtune.data.columns import with_columns
    from seqtune.errors import RejectedRowsError
    from seqtune.procedures.check import report
    from seqtune.tokens.preparation import prepare

    config, notes = with_columns(config)
    try:
        prepared = prepare(config)
    except RejectedRowsError as error:
        if rejected:
            runs.write_rejected(Path(rejected), error.rejected)
        raise
    if rejected:
        runs.write_rejected(Path(rejected), prepared.rejected)
    result = report(prepared)
    result["notes"] = [*notes, *result["notes"]]
    if as_json:
        print_json(result)
    else:
        _show(result)
        wrong = sum(finding["level"] == "error" for finding in result["findings"])
        command = fit_command(data, input=input, output=output, task=task, model=model, settings=settings)
        said = f"not ready: {wrong} {'error' if wrong == 1 else 'errors'} above" if wrong else f"ready to train: {command}"
        stdout_console().print(said, style="bold red" if wrong else "bold green", markup=False)
    if any(f["level"] == "error" for f in result["findings"]):
        raise typer.Exit(BAD_INPUT)


def fit_command(data: str, *, settings: Sequence[str] | None, **flags: str | None) -> str:
    """The command line that trains on what was looked at.

    Example:
        >>> fit_command("my pairs.csv", input="a", model=None, settings=["train.epochs=3"])
        "seqtune fit --data 'my pairs.csv' --input a --set train.epochs=3"
    """
    from seqtune.data.bundles import kind_of

    place = ["--mixture"] if kind_of(data) == "mixture" else [] if is_config(data) else ["--data"]
    words = ["seqtune", "fit", *place, data]
    words += [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]
    words += [word for text in settings or () for word in ("--set", text)]
    return shlex.join(words)


def _show_bundle(name: str, as_json: bool) -> None:
    """A task bundle's prompts in all their forms."""
    from rich.text import Text

    from seqtune.procedures.tasks import rendered

    result = rendered(name)
    if as_json:
        print_json(result)
        return
    out = stdout_console()
    for example in result["examples"]:
        out.print(example["form"], style="bold", markup=False)
        if "error" in example:
            out.print(Text(f"  {example['error']}", style="red"))
            continue
        plain = not out.is_terminal  # without colours, brackets mark what carries loss
        target = Text(f"«{example['target']}»" if plain else example["target"], style="bold green")
        out.print(Text(example["source"] + "\n", style="dim").append_text(target))
        out.print()
    out.print(f"{result['name']}: {result['templates']} templates, metric {result['metric']}", markup=False)
    if result["splits"] is None:
        out.print(f"it names no table; its templates use the columns {', '.join(result['columns'])}", markup=False)
    else:
        out.print(", ".join(f"{n:,} {side}" for side, n in result["splits"].items()), markup=False)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = stdout_console()
    plain = not out.is_terminal
    for number, example in enumerate(result["examples"], start=1):
        text = Text()
        inside = False
        for token in example:
            if plain and token["loss"] != inside:  # without colours, brackets mark what carries loss
                text.append("«" if token["loss"] else "»")
                inside = token["loss"]
            text.append(token["token"].replace("\n", "⏎\n"), style="bold green" if token["loss"] else "dim")
        out.print(f"[bold]example {number}[/bold] ([bold green]carries loss[/bold green], read only)")
        out.print(text.append("»" if plain and inside else ""))
    data, statistics = result["data"], result["statistics"]
    for note in [*result["notes"], *result["mixture"]]:
        out.print(note, markup=False)
    table = Table(title="lengths of training rows, in tokens", title_justify="left")
    for heading in ("", "min", "median", "p95", "max"):
        table.add_column(heading, justify="right")
    for name in ("tokens_per_row", "loss_tokens_per_row"):
        table.add_row(name.replace("_", " "), *(f"{statistics[name][q]:g}" for q in ("min", "median", "p95", "max")))
    out.print(table)
    splits = ", ".join(f"{n:,} {side}" for side, n in data["splits"].items())
    out.print(f"{data['num_rows']:,} rows: {splits}; {data['rejected']['total']:,} rejected")
    for reason, count in data["rejected"]["by_reason"].items():
        out.print(f"  rejected {count}, such as: {reason}", markup=False)
    for setting, count in data["left_out"].items():
        out.print(f"  left out {count} {setting}", markup=False)
    out.print(
        f"{statistics['tokens_per_character']:g} tokens per character, {statistics['tokens_per_word']:g} per word; "
        f"{statistics['vocabulary_used']:,} different tokens, {statistics['unknown_tokens']} unknown; "
        f"{data['num_loss_tokens']:,} of {data['num_tokens']:,} tokens carry loss; {data['num_inverted']} rows inverted"
    )
    if result["neighbours"]:
        _show_neighbours(result["neighbours"], out)
    for finding in result["findings"]:
        colour = {"error": "red", "warning": "yellow", "note": "cyan"}[finding["level"]]
        out.print(Text(f"{finding['level']}: ", style=colour).append(finding["text"], style="default"))
    if not result["findings"]:
        out.print("[green]nothing looks wrong[/green]")


def _show_neighbours(neighbours: dict[str, Any], out: Console) -> None:
    """A histogram of held-out rows by similarity to the nearest training row."""
    out.print(f"{neighbours['num_rows']:,} held-out rows by similarity to their nearest training row")
    out.print(f"(median {neighbours['median']:.2f}):")
    most = max(neighbours["counts"]) or 1
    for low, count in zip(neighbours["edges"], neighbours["counts"], strict=False):
        out.print(f"  {low:.1f}  {'#' * round(50 * count / most):50} {count:,}", markup=False)
