"""The sandbox in which templates run that other people wrote, in Jinja.

That no attribute of a Python object can be reached and nothing be changed is Jinja's own doing. Here it is seen to that a
template ends, and makes no text out of all proportion: there is nothing that calls itself, loops stand at most three deep, a
`range` is short, and no number that a function, a filter or an operator is given may be large.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jinja2
import jinja2.filters
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes

from seqtune.errors import ConfigError

MOST_CHARACTERS = 1_000_000  # that repeating or widening a text may make
MOST_LOOPS = 3  # within one another; no template of promptsource has more than two
MOST_ITEMS = 1000  # of a `range`
WIDTH = re.compile(r"\d{4}")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse what grows without a limit."""
        if operator == "%" and isinstance(left, str):
            raise jinja2.sandbox.SecurityError("texts are not formatted with %, which can make them as wide as it likes")
        sizes = [abs(x) if isinstance(x, int | float) else len(x) for x in (left, right)]
        if (operator != "%" and sizes[0] * sizes[1] > MOST_CHARACTERS) or (operator == "**" and sizes[1] > 64):
            raise jinja2.sandbox.SecurityError(f"{operator} of {sizes[0]} and {sizes[1]} is too large")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, unless with a number that is too large."""
        _check_numbers((*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """Formatting can make a text as wide as it likes, so a template has none but the filter."""
        if super().wrap_str_format(value):
            raise jinja2.sandbox.SecurityError(f"{value.__name__}() makes a text as wide as it likes")


def _check_numbers(given: Iterable[Any]) -> None:
    for value in given:
        if isinstance(value, int | float) and abs(value) > MOST_CHARACTERS:
            raise jinja2.sandbox.SecurityError(f"{value} is too large a number; {MOST_CHARACTERS:,} is the largest")


def _bounded(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter_)  # takes along the mark of a filter that wants the context
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args[1:], *kwargs.values()))
        return filter_(*args, **kwargs)

    return call


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    """Jinja's filter `format`, with widths of three digits at most."""
    if WIDTH.search(text) or "*" in text:
        raise jinja2.sandbox.SecurityError(f"{text[:60]!r} makes a text as wide as it likes")
    return jinja2.filters.do_format(text, *args, **kwargs)


def _range(*args: int) -> range:
    items = range(*args)
    if len(items) > MOST_ITEMS:
        raise jinja2.sandbox.SecurityError(f"a range of {len(items):,} items; {MOST_ITEMS:,} is the most")
    return items


def _most_frequent(items: Sequence[Any]) -> list[Any]:
    """The items that occur most often."""
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, items: Sequence[Any]) -> Any:
    """One of the items, another one for another draw."""
    return items[int(context.get("__draw__", 0)) % len(items)]


ENVIRONMENT = _Sandbox(undefined=jinja2.StrictUndefined, autoescape=False)
ENVIRONMENT.filters = {name: _bounded(filter_) for name, filter_ in ENVIRONMENT.filters.items()}
ENVIRONMENT.filters |= {"format": _format, "choice": _choice, "most_frequent": _most_frequent, "highlight": lambda text: text}
ENVIRONMENT.globals |= {"zip": zip, "range": _range}
del ENVIRONMENT.globals["lipsum"]  # makes text without a limit


@functools.lru_cache(4096)
def compiled(text: str) -> jinja2.Template:
    """A template that can be rendered.

    Raises:
        ConfigError: it is no Jinja, or could go on without an end.

    Example:
        >>> compiled("{{ name | upper }}").render(name="ethanol")
        'ETHANOL'
    """
    try:
        tree = ENVIRONMENT.parse(text)
        if tree.find(nodes.Macro) or tree.find(nodes.CallBlock) or any(loop.recursive for loop in tree.find_all(nodes.For)):
            raise ConfigError(f"{text[:60]!r} holds a macro or a recursive loop, which could go on without an end")
        if _depth(tree) > MOST_LOOPS:
            raise ConfigError(f"{text[:60]!r} holds loops more than {MOST_LOOPS} deep, which could go on without an end")
        return ENVIRONMENT.from_string(text)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ConfigError(f"{text[:60]!r} is not Jinja: {error}") from None


def undeclared(text: str) -> set[str]:
    """The names of the columns that a template takes."""
    return jinja2.meta.find_undeclared_variables(ENVIRONMENT.parse(text))


def _depth(node: nodes.Node) -> int:
    """How deep loops stand within one another."""
    return isinstance(node, nodes.For) + max(map(_depth, node.iter_child_nodes()), default=0)
