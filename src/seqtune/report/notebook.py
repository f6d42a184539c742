"""How answers, scores and findings look in a notebook: tables of plain HTML (`_repr_html_`), without script or style sheet.

Jupyter asks for it (https://ipython.readthedocs.io/en/stable/config/integrating.html); everywhere else they are the lists and
dictionaries that they were.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from seqtune.records import Prediction
from seqtune.report.scores import explained, interval, scores_of

MOST = 50  # rows of a table; the rest is counted


class Answers(list[Prediction]):
    """Predictions, a row each."""

    def _repr_html_(self) -> str:
        right = any(p.reference is not None for p in self)
        headings = ["input", "answer", *(["right answer"] if right else []), "log-probability", "status"]
        rows = [
            [p.input, p.prediction, *([p.reference or ""] if right else []), f"{p.score:.3f}", explained(p.status)]
            for p in self[:MOST]
        ]
        return table(headings, rows, len(self))


class Scores(dict[str, Any]):
    """The content of a `metrics.json`, a row for each metric with its 95% interval; or of a comparison."""

    def _repr_html_(self) -> str:
        rows = [[name.replace("_", " "), interval(score)] for name, score in scores_of(self).items() if "value" in score]
        if rows:
            return table(["metric", f"value (95% interval), {self['num_items']:,} items"], rows)
        compared = {name: value for name, value in self.items() if isinstance(value, dict)}
        keys = list(dict.fromkeys(key for value in compared.values() for key, cell in value.items() if isinstance(cell, float)))
        cells = [[name.replace("_", " "), *(_number(value.get(key)) for key in keys)] for name, value in compared.items()]
        return table(["metric", *(key.replace("_", " ") for key in keys)], cells)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], num_rows: int | None = None) -> str:
    """An HTML table; every text is escaped.

    Args:
        headings: of the columns.
        rows: their cells.
        num_rows: how many there are, where not all are shown.
    """
    shown = list(rows)
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in shown)
    more = f"<p>{num_rows - len(shown):,} more</p>" if num_rows and num_rows > len(shown) else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""
