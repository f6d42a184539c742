"""Writes the reference of settings from docs/config.schema.json, and that of commands from the application itself.

Run `python docs/write_reference.py`; a test fails when the pages are out of date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer

from seqtune.cli.app import app

FOLDER = Path(__file__).resolve().parent
SCHEMA = FOLDER / "config.schema.json"
SETTINGS = FOLDER / "reference" / "settings.md"
COMMANDS = FOLDER / "reference" / "commands.md"
SETTINGS_HEAD = """# Every setting

Made by `docs/write_reference.py` from [config.schema.json](../config.schema.json); do not edit. How the file is used, and
what the important ones do: [tables, models and settings](../settings.md).

A setting stands in the YAML file under its section (`train: {epochs: 5}`), or on the command line (`--set train.epochs=5`).
A default of `null` means: none, or that seqtune decides by the model and the table; the text says how.
"""
COMMANDS_HEAD = """# Every command

Made by `docs/write_reference.py` from the application; do not edit.

All commands take `--help`. Exit codes: 0 done, 1 bad input, 2 wrong usage, 128 + the signal's number for what a signal ended
(130 Ctrl-C, 143 SIGTERM, 129 SIGHUP). Results go to stdout, progress and messages to stderr.
"""
KINDS = {int: "N", float: "X", Path: "PATH"}
OPEN = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def allowed(schema: dict[str, Any], parts: dict[str, Any]) -> str:
    """What a setting takes, in words."""
    if "$ref" in schema:
        return f"section [{schema['$ref'].rpartition('/')[2]}]"
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(allowed(each, parts) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {allowed(schema['items'], parts)}" if schema.get("items") else "list"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {allowed(values, parts)}" if isinstance(values, dict) and values else "mapping"
    word = {"string": "text", "integer": "whole number", "boolean": "`true` or `false`", "null": "`null`"}.get(kind, kind)
    bounds = [f"{text} {schema[key]:,g}" for key, text in OPEN.items() if key in schema]
    return f"{word} {' and '.join(bounds)}".strip()


def settings() -> str:
    """The page of settings."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = schema["$defs"]
    own = [SETTINGS_HEAD, "## The run\n"]
    rest: list[str] = []
    for name, field in schema["properties"].items():
        part = _part(field)
        if part is None:
            own += _setting(name, field, parts)
        else:
            rest += _section(name, field, parts[part], parts)
    return "\n".join(own + rest)


def _part(field: dict[str, Any]) -> str | None:
    references = [each["$ref"] for each in (field, *field.get("anyOf", ())) if "$ref" in each]
    return references[0].rpartition("/")[2] if references else None


def _section(path: str, field: dict[str, Any], section: dict[str, Any], parts: dict[str, Any]) -> list[str]:
    lines = [f"{'##' if '.' not in path else '###'} {path}\n", f"{section['description']}\n"]
    if "description" in field:
        lines[-1] = f"{section['description']} {_plain(field['description'])}\n"
    for name, each in section["properties"].items():
        part = _part(each)
        dotted = f"{path}.{name}"
        lines += _section(dotted, each, parts[part], parts) if part else _setting(dotted, each, parts)
    return lines


def _setting(path: str, field: dict[str, Any], parts: dict[str, Any]) -> list[str]:
    default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else "empty"
    return [f"### {path}\n", f"{allowed(field, parts)}; default `{default}`\n", f"{_plain(field['description'])}\n"]


def _plain(text: str) -> str:
    """A description as a sentence of Markdown; what begins with the name of a value keeps it as it is."""
    text = text if re.match(r"[\w, ]*:", text) else text[0].upper() + text[1:]
    text = re.sub(r"\{[\w.]+\}", r"`\g<0>`", text).replace("*", r"\*").replace("<", "&lt;")
    return text if text.endswith((".", "...")) else f"{text}."


def commands() -> str:
    """The page of commands."""
    group: Any = typer.main.get_command(app)
    lines = [COMMANDS_HEAD]
    for name in sorted(group.commands):
        lines += _command(name, group.commands[name])
    return "\n".join(lines)


def _command(name: str, command: Any, level: str = "##") -> list[str]:
    said, _, example = (command.help or "").partition("[bold]Example[/bold]:")
    lines = [f"{level} seqtune {name}\n", f"{said.strip()}\n"]
    if example:
        lines.append(f"```sh\n{example.strip()}\n```\n")
    rows = [_parameter(each) for each in command.params if each.name not in ("help", "as_json")]
    if any(each.name == "as_json" for each in command.params):
        rows.append(("`--json`", "Print the result as JSON on stdout."))
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""]
    if hasattr(command, "list_commands"):  # sources of our own packs; those of others say theirs by --help
        for each in ("chemicals", "molecules", "pubchem"):
            lines += _command(f"{name} {each}", command.get_command(None, each), "###")
    return lines


def _parameter(parameter: Any) -> tuple[str, str]:
    """Name and value, and what it is for."""
    kind = parameter.type_descriptor.annotation
    takes = parameter.metavar or KINDS.get(getattr(kind, "__args__", (kind,))[0], "TEXT")
    if parameter.param_type_name == "argument":
        names = f"`{takes}`".replace("|", r"\|")
    else:
        names = ", ".join(f"`{option}`" if parameter.is_flag else f"`{option} {takes}`" for option in parameter.opts)
    default, text = parameter.default, parameter.help or ""
    if parameter.required and parameter.param_type_name == "option":
        text += " Required."
    if default not in (None, False, [], ()) and not callable(default):
        text += f" Default: `{default}`."
    return names, text.replace("|", r"\|").replace("*", r"\*")


def main() -> None:
    """Write both pages."""
    SETTINGS.parent.mkdir(exist_ok=True)
    for page, text in ((SETTINGS, settings()), (COMMANDS, commands())):
        page.write_text(text, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
