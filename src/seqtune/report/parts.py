"""What all pages share: templates, figures as inline SVG, and how numbers are written."""

from __future__ import annotations

import io
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib import pyplot

matplotlib.use("Agg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: smaller, and searchable
matplotlib.rcParams["text.parse_math"] = False  # a label is a setting or an answer, and `$` in it is no formula
BLUE, GREY, ORANGE = "#2563a8", "#8a94a3", "#c2571a"


def render(name: str, **values: Any) -> str:
    """Fill a template of `assets/report`; texts are escaped."""
    loader = jinja2.PackageLoader("seqtune", "assets/report")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name).render(**values)


def svg(figure: Any) -> Markup:
    """A figure as markup; it is closed."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704 - made by matplotlib, which escapes labels


def new_axes(x: str, y: str) -> tuple[Any, Any]:
    """A figure and its axes, labelled."""
    figure, axes = pyplot.subplots(figsize=(5.2, 3.2))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes
