"""YAML as people write it: `2e-5` is a number, and a settings file must hold a mapping."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from seqtune.errors import ConfigError

# no YAML; or a date that does not exist, no UTF-8, a number of thousands of digits; or nested too deeply
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """YAML in which `2e-5` is a number, as in YAML 1.2; PyYAML follows YAML 1.1 and reads it as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Any:
    """The value of a YAML text."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def read_yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something else.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{what} {str(path)!r} does not exist") from None
    except (*UNREADABLE, OSError) as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read as YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{what} {str(path)!r} holds a {type(content).__name__}; it must be a mapping of keys")
    return content


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=value`; the value is read as YAML.

    Raises:
        ConfigError: there is no `=` or the value is not YAML.

    Example:
        >>> parse_override("train.epochs=5")
        (['train', 'epochs'], 5)
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {text!r}: write key=value, for instance --set train.epochs=5")
    try:
        return key.strip().split("."), read_yaml(value)
    except UNREADABLE as error:
        raise ConfigError(f"--set {text!r}: the value is not YAML ({error})") from None
