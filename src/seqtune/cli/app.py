"""The typer application, its exit codes and the options that several verbs share."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtune.errors import InterruptedRunError, SeqtuneError
from seqtune.report.scores import explained, interval, rows_table, scores_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from seqtune.records import Prediction
    from seqtune.sections import DataConfig

PIPE_WIDTH = 200  # columns of a table in a pipe
DONE, BAD_INPUT, USAGE = 0, 1, 2
# what Slurm, Kubernetes and `kill` send, and a terminal that closes
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = tuple(128 + number for number in (signal.SIGINT, *SIGNALS))

app = typer.Typer(
    name="seqtune",
    help="Turn a small pretrained language model and a table of pairs into a measured specialist.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any setting; may be repeated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
InputOption = Annotated[str | None, typer.Option("--input", help="Column with the input text.")]
OutputOption = Annotated[str | None, typer.Option("--output", help="Column with the output text.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="A pack's task, such as chem:smiles-to-iupac, or task.yaml.")]
BaselinesOption = Annotated[bool, typer.Option("--no-baselines", help="Leave out the tools that a task compares with.")]
VerifyOption = Annotated[
    bool | None, typer.Option("--verify", help="Let the task's verifier check the hypotheses; the best verified one wins.")
]
AbstainOption = Annotated[
    bool | None, typer.Option("--abstain", help="With --verify: no answer rather than an unverified one.")
]
BeamsOption = Annotated[int | None, typer.Option("--num-beams", help="Beams, 1 to 20; 1 is greedy.")]
ReturnOption = Annotated[int | None, typer.Option("--num-return", help="Hypotheses per input.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option("--trust-remote-code", metavar="NAME", help="Let this model run its own Python code; may be repeated."),
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="Decoding engine: auto, native, transformers, ctranslate2, vllm or PACK:NAME.")
]
# settings that have an option of their own in some verbs
OPTIONS = {
    "data.path": "--data",
    "data.input": "--input",
    "data.output": "--output",
    "model.name": "--model",
    "decode.num_beams": "--num-beams",
    "decode.num_return": "--num-return",
    "decode.length_penalty": "--length-penalty",
    "decode.max_new_tokens": "--max-new-tokens",
    "decode.verify": "--verify",
    "decode.abstain": "--abstain",
    "decode.engine": "--engine",
}


def _version(show: bool) -> None:
    if show:
        from seqtune import __version__

        print(f"seqtune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Turn a small pretrained language model and a table of pairs into a measured specialist."""


_DISK_FULL = "the disk is full{}; free some space, then run the command again; a training goes on with --resume"


def run_app(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code: 0 done, 1 bad input, 2 usage, 128 + number of the signal that ended it."""
    try:
        app(args=list(arguments), prog_name="seqtune")
    except SystemExit as end:
        if end.code in INTERRUPTED:  # 130 is what typer makes of Ctrl-C
            complain("interrupted")
        return end.code if isinstance(end.code, int) else DONE
    except InterruptedRunError as error:
        complain(str(error))
        return 128 + error.signal
    except SeqtuneError as error:
        return complain(with_options(str(error), arguments[0]))
    except BrokenPipeError:
        # the reader of our stdout has left; keep the interpreter from complaining about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        text = _file_error(error)
        if text is None:  # a mistake of our own
            raise
        return complain(text)
    return DONE


def leave_in_order() -> None:
    """Let signals that would end the process at once end it as an exception does: hidden files go, children are stopped.

    A training notes them itself and writes a checkpoint first. Those that are ignored, as `nohup` sets it, stay ignored.
    """

    def leave(number: int, _: Any) -> None:
        sys.exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)


def _file_error(error: Exception) -> str | None:
    """What to tell the user if the operating system refused to read or write a file; `None` for any other error."""
    number, file, text = getattr(error, "errno", None), getattr(error, "filename", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return _DISK_FULL.format(f" while writing {str(file)!r}" if file else "")
    if number and file:
        return f"{os.strerror(number)}: {str(file)!r}"
    # errors of polars and safetensors come from Rust, without a number and a file name; their text says both
    kinds = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
    return text if isinstance(error, kinds) or "(os error " in text else None


def with_options(text: str, verb: str) -> str:
    """An error's text with the verb's own option beside a setting that has one, as that is what was typed.

    Example:
        >>> with_options("decode.num_beams = 21: at most 20", "predict")
        'decode.num_beams [--num-beams] = 21: at most 20'
    """
    command = typer.main.get_command(app)
    offered = {option for p in command.commands[verb].params for option in p.opts}  # type: ignore[attr-defined]
    for setting, option in OPTIONS.items():
        if option in offered and option not in text:
            text = re.sub(rf"(?<![\w.]){re.escape(setting)}(?!\.?\w)", f"{setting} [{option}]", text, count=1)
    return text


def complain(text: str) -> int:
    """Print an error on stderr; returns the exit code for bad input."""
    print(f"error: {text}", file=sys.stderr)
    return BAD_INPUT


def overrides(settings: list[str] | None, **flags: Any) -> dict[str, Any]:
    """Merge flags (`data__path=...` for `data.path`) and `--set`; what is unset stays out, `--set` wins."""
    from seqtune.config import Config
    from seqtune.yaml_files import parse_override, text_keys

    texts = text_keys(Config) if settings else ()
    found = {key.replace("__", "."): value for key, value in flags.items() if value is not None}
    for text in settings or []:
        path, value = parse_override(text, texts)
        found[".".join(path)] = value
    return found


def read_only(flags: dict[str, Any], allowed: Sequence[str], verb: str) -> None:
    """Refuse settings that a verb would not use.

    Args:
        flags: dotted key -> value.
        allowed: keys, or `section.` for all of a section.
        verb: for the message.

    Raises:
        ConfigError: names the first such key, and what the verb reads.
    """
    from seqtune.errors import ConfigError, did_you_mean

    exact = [key for key in allowed if not key.endswith(".")]
    for key in flags:
        if key not in exact and not key.startswith(tuple(k for k in allowed if k.endswith("."))):
            shown = ", ".join(f"{k}*" if k.endswith(".") else k for k in allowed)
            raise ConfigError(f"--set {key}: `seqtune {verb}` does not use it{did_you_mean(key, exact)}; it reads {shown}")


def section(flags: dict[str, Any], name: str) -> dict[str, Any]:
    """The flags of one section, without its name.

    Example:
        >>> section({"decode.num_beams": 5, "data.id": "cid"}, "decode")
        {'num_beams': 5}
    """
    return {key.removeprefix(f"{name}."): value for key, value in flags.items() if key.startswith(f"{name}.")}


def reading(flags: dict[str, Any]) -> DataConfig:
    """How a table is read, by the flags of the section `data`."""
    from seqtune.config import load_config

    return load_config(None, {key: value for key, value in flags.items() if key.startswith("data.")}).data


def is_config(path: str | None) -> bool:
    """True for a YAML file."""
    return path is not None and Path(path).suffix.lower() in (".yaml", ".yml")


def print_json(content: Any) -> None:
    """Machine-readable result on stdout."""
    print(json.dumps(content, ensure_ascii=False, indent=None))


def stdout_console() -> Console:
    """A console on stdout for tables and colours, without guessing widths in a pipe."""
    from rich.console import Console

    class Pipeable(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich itself would end the process with an error

    terminal = sys.stdout.isatty()
    return Pipeable(soft_wrap=not terminal, width=None if terminal else PIPE_WIDTH, highlight=False)


def print_metrics(metrics: dict[str, Any], title: str = "") -> None:
    """A table of scores with their intervals, then the strata and the signatures."""
    from rich.table import Table

    out = stdout_console()
    table = Table(title=title or None, title_justify="left")
    for heading in ("metric", "value", "95% interval"):
        table.add_column(heading, justify="left" if heading == "metric" else "right", no_wrap=True)
    scores = scores_of(metrics)
    for name, value in scores.items():
        table.add_row(name, f"{value['value']:.4f}", f"{value['low']:.4f} to {value['high']:.4f}")
    out.print(table)
    strata = metrics.get("by_input_length", [])
    if len(strata) > 1:
        table = Table(title="by input length", title_justify="left")
        for heading in ("characters", "items", "exact match", "edit similarity"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in strata:
            table.add_row(
                f"{row['min_characters']}-{row['max_characters']}",
                str(row["num_items"]),
                f"{row['exact_match']['value']:.4f}",
                f"{row['edit_similarity']['value']:.4f}",
            )
        out.print(table)
    _print_task_scores(metrics, out)
    for name, value in scores.items():
        out.print(f"{name}: {value['signature']}", style="dim", markup=False)
    print_undefined(metrics, out)
    print_unusual(metrics, out)


def print_unusual(metrics: dict[str, Any], out: Console) -> None:
    """How many answers are none in the plain sense, and why."""
    for status, count in metrics.get("status", {}).items():
        if status not in ("ok", "verified"):
            out.print(f"{count} of {metrics['num_items']} {explained(status)}", style="yellow", markup=False)


def answer_text(prediction: Prediction, *, plain: bool) -> Text:
    """An answer and what is right, the differences marked by colours, or in plain text [-what is wrong-]{+what is right+}."""
    from rapidfuzz.distance import Levenshtein
    from rich.text import Text

    reference, line = prediction.reference or "", Text("  ")
    right = prediction.prediction == reference
    line.append("right  " if right else "WRONG  ", style="green" if right else "bold red")
    line.append(f"{prediction.input}  ->  ")
    for step in Levenshtein.opcodes(prediction.prediction, reference):
        ours, theirs = prediction.prediction[step.src_start : step.src_end], reference[step.dest_start : step.dest_end]
        if step.tag == "equal":
            line.append(ours)
            continue
        for text, marks, style in ((ours, ("[-", "-]"), "red strike"), (theirs, ("{+", "+}"), "green")):
            if text:
                line.append(f"{marks[0]}{text}{marks[1]}" if plain else text, style=style)
    return line


def print_undefined(metrics: dict[str, Any], out: Console) -> None:
    """The metrics that have no value on these items, each with the reason."""
    for name, reason in metrics.get("undefined", {}).items():
        out.print(f"{name}: undefined, {reason}", style="yellow", markup=False)


def _print_task_scores(metrics: dict[str, Any], out: Console) -> None:
    """The score of the references, other tools' scores, strata, and what verifying was worth."""
    for name, value in metrics.get("gold_ceiling", {}).items():
        out.print(f"gold ceiling: the references themselves reach {name} {interval(value)}")
    if metrics.get("baselines"):
        rows = [{"label": name, **row} for name, row in metrics["baselines"].items()]
        _print_rows("other tools on the same items", "tool", rows, out)
    for stratum, rows in metrics.get("strata", {}).items():
        if len(rows) > 1:
            _print_rows(f"by {stratum}", stratum, rows, out)
    report = metrics.get("verification")
    if report:
        out.print(f"verification of {report['num_hypotheses']} hypotheses an item:")
        for key, value in report.items():
            if key == "num_hypotheses":
                continue
            if "value" in value:
                out.print(f"  {key}: {interval(value)}")
            else:
                out.print(f"  {key}: " + ", ".join(f"{part} {interval(v)}" for part, v in value.items()))


def _print_rows(title: str, heading: str, rows: list[dict[str, Any]], out: Console) -> None:
    from rich.table import Table

    headings, cells = rows_table(heading, rows)
    table = Table(title=title, title_justify="left")
    for name in headings:
        table.add_column(name.replace("_", " "), justify="left" if name == heading else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    out.print(table)
