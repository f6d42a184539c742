"""Files of keys and values: YAML as people write it (`2e-5` is a number), JSON as programs do; each must hold a mapping.

`validate` checks a mapping against a model and says everything that is wrong with it at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from seqtune.errors import ConfigError, did_you_mean

# no YAML; or a date that does not exist, no UTF-8, a number of thousands of digits; or nested too deeply
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """YAML in which `2e-5` is a number, as in YAML 1.2; PyYAML follows YAML 1.1 and reads it as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


MAX_NODES = 1_000_000  # of a text, each as often as it is named


def read_yaml(text: str, make_loader: Callable[[str], Any] = _Loader) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML.
        make_loader: one of PyYAML's safe loaders.

    Raises:
        yaml.YAMLError: it is no YAML, or names its own parts (`*name`) so often that it becomes far larger than it is.
    """
    loader = make_loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _num_nodes(root, {}) > MAX_NODES:
            raise yaml.YAMLError(f"it holds more than {MAX_NODES:,} values, those that are named several times included")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _num_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node, itself included; one within itself counts once."""
    if id(node) not in known:
        known[id(node)] = 1
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] += 0 if isinstance(node, yaml.ScalarNode) else sum(_num_nodes(part, known) for part in parts)
    return known[id(node)]


def read_json_object(path: Path, damaged: Callable[[Path, str], Exception]) -> dict[str, Any]:
    """Read a JSON file that must hold an object; `damaged` makes the error for one that does not, from a file and a reason."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise damaged(path, "no JSON object")
    return content


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


def text_keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    """The dotted keys whose value is a text, which nobody should have to write as YAML.

    Example:
        `text_keys(Config)` holds "format.template", and not "train.epochs".
    """
    found: set[str] = set()
    for name, field in section.model_fields.items():
        alternatives = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else [field.annotation]
        kinds = {get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in alternatives}
        if kinds <= {str, NoneType}:
            found.add(prefix + name)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= text_keys(kind, f"{prefix}{name}.")
    return found


def parse_override(text: str, texts: Collection[str] = ()) -> tuple[list[str], Any]:
    r"""Split `a.b=value`; the value is read as YAML, or, where the key takes a text, as it stands.

    In YAML's quotes a text may hold escapes, such as a line break (`"\n"`); `null` is no text.

    Args:
        text: what stands behind `--set`.
        texts: dotted keys that take a text.

    Raises:
        ConfigError: there is no `=` or the value is not YAML.

    Example:
        >>> parse_override("train.epochs=5")
        (['train', 'epochs'], 5)
        >>> parse_override("format.template={input} ->", ["format.template"])
        (['format', 'template'], '{input} ->')
    """
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not key:
        raise ConfigError(f"--set {text!r}: write key=value, for instance --set train.epochs=5")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key in texts and not quoted and value != "null":
        return key.split("."), value
    try:
        return key.split("."), read_yaml(value)
    except UNREADABLE as error:
        if key in texts:  # quotes that are text themselves
            return key.split("."), value
        raise ConfigError(f"--set {text!r}: the value is not YAML ({error})") from None


def opened(content: dict[str, Any], key: str) -> dict[str, Any]:
    """Put what a YAML file holds, and its `folder`, in the place of its name, so that each setting can be overridden."""
    if isinstance(name := content.get(key), str):
        content[key] = {"folder": str(Path(name).parent), **read_yaml_mapping(Path(name), key)}
    return content


def put(content: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key in nested mappings, by its dotted name.

    Raises:
        ConfigError: something on the way is no mapping.
    """
    node = content
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(node.setdefault(parent, {}), dict):
            raise ConfigError(f"{dotted}: {parent!r} holds a value, not a section")
        node = node[parent]
    node[last] = value


def validate(model: type[BaseModel], content: Any, prefix: str = "") -> Any:
    """Check `content` against `model`; all errors of pydantic become one readable `ConfigError`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_explain(model, item, prefix) for item in error.errors()]
        head = "1 setting is wrong" if len(lines) == 1 else f"{len(lines)} settings are wrong"
        raise ConfigError(f"{head}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(model: type[BaseModel], item: Any, prefix: str) -> str:
    path = [str(part) for part in item["loc"]]
    dotted = (prefix + ".".join(path)).removesuffix(".")
    if item["type"] == "extra_forbidden":
        section = _section_at(model, path[:-1])
        allowed = sorted(section.model_fields) if section else []
        return f"{dotted}: unknown key{did_you_mean(path[-1], allowed)} (allowed: {', '.join(allowed)})"
    message = item["msg"].removeprefix("Value error, ")
    if not path or isinstance(item["input"], dict):  # several settings that contradict each other
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted} = {item['input']!r}: {message}"


def _section_at(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The section that holds a key; places in lists, and the kinds that a value was tried as, lead no further."""
    for name in path:
        field = model.model_fields.get(name)
        model = next(_sections_in(field.annotation), model) if field else model
    return model


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
