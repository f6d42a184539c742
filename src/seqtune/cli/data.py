"""`seqtune data`: one sub-command per installed source."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from seqtune.cli.app import JsonOption, app, print_json


class Sources(TyperGroup):
    """Finds sub-commands among the entry points; a pack is imported when one of its sources is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All installed sources."""
        from seqtune import plugins

        return plugins.names("sources")

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Turn a source's function into a command.

        Raises:
            SeqtuneError: there is no such source, or its pack is not complete.
        """
        from seqtune import plugins

        single = typer.Typer(rich_markup_mode="rich", add_completion=False)
        single.command(cmd_name)(_printing(plugins.find("sources", cmd_name)))
        return typer.main.get_command(single)


def _printing(source: Callable[..., dict[str, int]]) -> Callable[..., None]:
    """The source with `--json` and its counts printed."""
    signature = inspect.signature(source)
    hints = typing.get_type_hints(source, include_extras=True)

    @functools.wraps(source)
    def command(**options: Any) -> None:
        as_json = options.pop("as_json")
        counts = source(**options)
        if as_json:
            print_json({"out": str(options["out"]), "counts": counts})
            return
        print(f"{options['out']}: {counts['kept']:,} rows")
        for reason, count in counts.items():
            print(f"  {count:>11,} {reason}")

    own = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
    flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption)
    command.__signature__ = inspect.Signature([*own, flag])  # type: ignore[attr-defined]
    command.__annotations__ = {**hints, "as_json": JsonOption, "return": None}
    return command


sources = typer.Typer(
    cls=Sources,
    no_args_is_help=True,
    help="Write a curated data set as a table, with a count per rule and the dropped rows beside it.\n\n"
    "[bold]Example[/bold]: seqtune data chemicals --out molecules.csv",
)
app.add_typer(sources, name="data")


@sources.callback()
def _root() -> None:
    """Write a curated data set as a table, with a count per rule and the dropped rows beside it."""
