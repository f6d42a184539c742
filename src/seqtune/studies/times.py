"""How long a study will take: what its points have cost so far, by the work in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from seqtune.studies.execution import facts
from seqtune.studies.points import Point, chains, is_done


def seconds_left(points: Sequence[Point], jobs: int) -> float | None:
    """Wall time that the missing points will take with `jobs` at once; `None` if nothing tells.

    Each missing training is priced by the finished trainings of the same model: seconds a step or seconds an example, or by its
    own time limit. The longest chain is a lower bound, because its points follow each other.
    """
    done = [p for p in points if is_done(p) and "wall_seconds" in facts(p)]
    left = []
    for chain in chains(points):
        seconds, trained, priced = 0.0, set[Path](), 0.0
        for point in chain:
            known = point.run in trained or is_done(point)
            trained.add(point.run)
            price = _price(point, done)
            if price is None and not known:
                return None
            if not known and price is not None:
                seconds += max(0.0, price - (priced if point.prefix else 0.0))
            priced = price or priced  # a longer training of the chain goes on from here
        left.append(seconds)
    return max(sum(left) / jobs, *left) if left else 0.0


def _price(point: Point, done: Sequence[Point]) -> float | None:
    """Wall time of one training with its decoding."""
    overhead = [facts(p)["wall_seconds"] - 60 * p.config.train.max_minutes for p in done if p.config.train.max_minutes]
    if point.config.train.max_minutes:
        return 60 * point.config.train.max_minutes + (median(overhead) if overhead else 0.0)
    alike = [p for p in done if p.config.model == point.config.model] or list(done)
    for unit in ("steps", "examples"):
        amount = _work(point, unit)
        rates = [
            facts(p)["wall_seconds"] / work for p in alike if (work := _work(p, unit)) and not facts(p).get("steps_taken_over")
        ]
        if amount and rates:
            return amount * median(rates)
    return median(facts(p)["wall_seconds"] for p in alike) if alike else None


def _work(point: Point, unit: str) -> float | None:
    train = point.config.train
    if unit == "steps":
        return train.max_steps
    return train.epochs * point.config.data.num_examples if train.epochs and point.config.data.num_examples else None
