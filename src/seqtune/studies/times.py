"""How long a study will take: what its points have cost so far, by the work in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from seqtune.config import Config
from seqtune.studies.execution import facts
from seqtune.studies.points import Point, chains, is_done

OVERHEAD_SECONDS = 30.0  # start, preparation and evaluation of a point, before one has shown what they take


def seconds_left(points: Sequence[Point], jobs: int) -> float | None:
    """Wall time that the missing points will take with `jobs` at once; `None` if nothing tells.

    Each missing training is priced by the finished trainings of the same model: seconds a step or seconds an example, or by its
    own time limit. The longest chain is a lower bound, because its points follow each other.
    """
    finished = {point.run for point in points if is_done(point)}
    costs = {run: cost for run, cost in ((p.run, facts(p)) for p in points if p.run in finished) if cost.get("wall_seconds")}
    done = [(point.config, costs[point.run]) for point in points if point.run in costs]
    left = []
    for chain in chains(points):
        seconds, trained, priced = 0.0, set[Path](), 0.0
        for point in chain:
            known = point.run in trained or point.run in finished
            trained.add(point.run)
            price = _price(point, done)
            if price is None and not known:
                return None
            if not known and price is not None:
                seconds += max(0.0, price - (priced if point.prefix else 0.0))
            priced = price or priced  # a longer training of the chain goes on from here
        left.append(seconds)
    return max(sum(left) / jobs, *left) if left else 0.0


def _price(point: Point, done: Sequence[tuple[Config, dict[str, Any]]]) -> float | None:
    """Wall time of one training with its decoding."""
    train = point.config.train
    if train.max_minutes:
        overhead = [cost["wall_seconds"] - 60 * c.train.max_minutes for c, cost in done if c.train.max_minutes]
        return 60 * train.max_minutes + (median(overhead) if overhead else OVERHEAD_SECONDS)
    alike = [(c, cost) for c, cost in done if c.model == point.config.model] or list(done)
    for unit in ("steps", "examples"):
        amount = _work(point.config, unit)
        whole = [(c, cost) for c, cost in alike if not cost.get("steps_taken_over")]
        rates = [cost["wall_seconds"] / work for c, cost in whole if (work := _work(c, unit))]
        if amount and rates:
            return amount * median(rates)
    return median(cost["wall_seconds"] for _, cost in alike) if alike else None


def _work(config: Config, unit: str) -> float | None:
    train, num_examples = config.train, config.data.num_examples
    if unit == "steps":
        return train.max_steps
    return train.epochs * num_examples if train.epochs and num_examples else None
