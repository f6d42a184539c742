"""Single answers on a page: which are wrong and where, and whether the model's confidence can be trusted."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rapidfuzz.distance import Levenshtein

from seqtune import plugins
from seqtune.data.tasks import Task
from seqtune.records import Prediction
from seqtune.report.parts import BLUE, GREY, new_axes, svg

NUM_BINS = 8


def confidence_plots(predictions: Sequence[Prediction]) -> list[tuple[str, Markup]]:
    """Confidence against accuracy, and accuracy against coverage; none without log-probabilities."""
    known = [(c, p.prediction == p.reference) for p in predictions if (c := _confidence(p)) is not None]
    if not known:
        return []
    confidence, right = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    return [
        ("Can its confidence be trusted?", _reliability_plot(confidence, right)),
        ("Answering less", _coverage_plot(confidence, right, len(predictions))),
    ]


def wrong_answers(predictions: Sequence[Prediction], task_file: Path, limit: int, pictures: int) -> dict[str, Any]:
    """What the template needs to show the wrong answers, those that the model was surest of first; no answer comes last.

    Args:
        predictions: with references.
        task_file: `task.yaml`, whose pack may draw; it may be missing.
        limit: answers to show.
        pictures: answers to draw.
    """
    wrong = [p for p in predictions if p.prediction != p.reference]
    wrong.sort(key=lambda p: -1.0 if (confidence := _confidence(p)) is None else confidence, reverse=True)
    pack = Task.load(task_file).pack if task_file.exists() else None
    picture: Callable[[str], str] | None = plugins.load(pack.picture) if pack and pack.picture else None
    rows = []
    for index, p in enumerate(wrong[:limit]):
        reference = p.reference or ""
        ours, theirs, first = difference(p.prediction, reference)
        drawn = []
        if picture and index < pictures:
            texts = [
                p.details.get("read_back") or p.prediction,
                p.input if p.details.get("read_back") is not None else reference,
            ]
            drawn = [Markup(svg) for svg in map(picture, texts) if svg]  # noqa: S704 - drawn by the pack, not taken from data
        rows.append(
            {
                "id": p.id, "input": p.input, "prediction": ours, "reference": theirs, "first": first, "length": len(reference),
                "confidence": _confidence(p), "status": p.details.get("structure") or p.status, "pictures": drawn,
            }
        )  # fmt: skip
    return {"errors": rows, "num_wrong": len(wrong), "num_items": len(predictions)}


def _confidence(prediction: Prediction) -> float | None:
    """Probability that the model gives its answer as a whole; `None` without an answer of the model."""
    if not prediction.hypotheses or prediction.status == "abstained":
        return None
    return math.exp(min(0.0, prediction.score))


def difference(prediction: str, reference: str) -> tuple[Markup, Markup, int]:
    """Both texts with what differs marked, and the first character at which they part.

    Example:
        >>> difference("abx", "aby")
        (Markup('ab<del>x</del>'), Markup('ab<ins>y</ins>'), 2)
    """
    ours, theirs, first = [], [], None
    for step in Levenshtein.opcodes(prediction, reference):
        mine, right = prediction[step.src_start : step.src_end], reference[step.dest_start : step.dest_end]
        if step.tag == "equal":
            ours.append(html.escape(mine))
            theirs.append(html.escape(right))
            continue
        first = step.src_start if first is None else first
        ours.append(f"<del>{html.escape(mine)}</del>" if mine else "")
        theirs.append(f"<ins>{html.escape(right)}</ins>" if right else "")
    made = [Markup("".join(parts)) for parts in (ours, theirs)]  # noqa: S704 - every text was escaped above
    return made[0], made[1], len(reference) if first is None else first


def _reliability_plot(confidence: np.ndarray, right: np.ndarray) -> Markup:
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, NUM_BINS + 1)))
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, max(0, len(edges) - 2))
    figure, axes = new_axes("confidence (probability of the whole answer)", "share that is right")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    points = [(confidence[bins == b].mean(), right[bins == b].mean()) for b in np.unique(bins)]
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return svg(figure)


def _coverage_plot(confidence: np.ndarray, right: np.ndarray, num_items: int) -> Markup:
    right = right[np.argsort(-confidence, kind="stable")]
    counts = np.arange(1, len(right) + 1)
    figure, axes = new_axes("share answered, surest first", "share of these that is right")
    axes.plot(counts / num_items, right.cumsum() / counts, color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return svg(figure)
