"""What a curve of scores along the number of examples says about more of them: a power law with an offset.

Source: Hestness et al. 2017, https://arxiv.org/abs/1712.00409 (error falls as a power of the number of examples, to a floor).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

NUM_RESAMPLES = 200
MIN_SIZES = 3
MAX_EVALUATIONS = 60  # a fit that needs more is on a plain where every law is as good
MAX_LOGARITHM = math.log(1e15)  # examples; more is no number that anyone could gather
EXPONENTS = (0.1, 0.3, 0.6, 1.0)  # where the search for the law begins


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Error at n examples is `offset + scale * n ** -exponent`.

    Attributes:
        offset: error that no number of examples takes away.
        scale: error of a single example above the offset.
        exponent: how fast it falls.
    """

    offset: float
    scale: float
    exponent: float

    def error(self, num_examples: float | np.ndarray) -> np.ndarray:
        """Error, elementwise."""
        return self.offset + self.scale * np.asarray(num_examples, dtype=float) ** -self.exponent

    def num_examples(self, error: float) -> float:
        """Examples for an error; infinite if it lies at or below the offset.

        Example:
            >>> round(PowerLaw(0.1, 2.0, 0.5).num_examples(0.3))
            100
        """
        above = error - self.offset
        if above <= 0:
            return math.inf
        logarithm = (math.log(self.scale) - math.log(above)) / self.exponent if self.scale > 0 else -math.inf
        return math.exp(logarithm) if logarithm < MAX_LOGARITHM else math.inf


def fit(
    num_examples: Sequence[float], errors: Sequence[float] | np.ndarray, exponents: Sequence[float] = EXPONENTS
) -> PowerLaw:
    """Least squares from several starts; offsets between 0 and the smallest error.

    Args:
        num_examples: at least three different numbers.
        errors: one minus a score, one each.
        exponents: where to start.
    """
    sizes, values = np.asarray(num_examples, dtype=float), np.asarray(errors, dtype=float)
    assert len(set(sizes)) >= MIN_SIZES, "a power law with an offset has three parameters"
    middle = np.exp(np.log(sizes).mean())  # the scale is fitted at the middle of the data, where it is best known
    best = None
    for exponent in exponents:
        start = [0.3 * values.min(), max(1e-3, np.median(values) - 0.3 * values.min()), exponent]
        low, high = [0.0, 0.0, 1e-3], [max(1e-9, values.min()), np.inf, 5.0]
        found = least_squares(
            lambda p: p[0] + p[1] * (sizes / middle) ** -p[2] - values,
            np.clip(start, low, np.array(high) - 1e-12),
            bounds=(low, high),
            max_nfev=MAX_EVALUATIONS,
        )
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    offset, at_middle, exponent = best.x
    return PowerLaw(float(offset), float(at_middle * middle**exponent), float(exponent))


@dataclass(frozen=True, slots=True)
class Forecast:
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def forecast(
    num_examples: Sequence[float], scores: Sequence[float], halves: Sequence[float], at: float, seed: int = 0
) -> Forecast:
    """The score that the law through these points gives at another number of examples.

    Args:
        num_examples: of the points.
        scores: in [0, 1].
        halves: half-widths of the scores' 95% intervals, from which the resamples are drawn.
        at: number of examples to look at.
        seed: of the resamples.
    """
    value = 1 - float(fit(num_examples, 1 - np.asarray(scores)).error(at))
    draws = [1 - float(law.error(at)) for law in _resampled(num_examples, scores, halves, seed)]
    return _forecast(value, draws)


def examples_for(
    num_examples: Sequence[float], scores: Sequence[float], halves: Sequence[float], score: float, seed: int = 0
) -> Forecast:
    """How many examples a score would take by the law through these points; infinite where it lies beyond the law's ceiling.

    Args:
        num_examples: of the points.
        scores: in [0, 1].
        halves: half-widths of the scores' 95% intervals, from which the resamples are drawn.
        score: to reach.
        seed: of the resamples.
    """
    value = fit(num_examples, 1 - np.asarray(scores)).num_examples(1 - score)
    return _forecast(value, [law.num_examples(1 - score) for law in _resampled(num_examples, scores, halves, seed)])


def _resampled(
    num_examples: Sequence[float], scores: Sequence[float], halves: Sequence[float], seed: int
) -> Iterator[PowerLaw]:
    generator = np.random.default_rng(seed)
    start = (fit(num_examples, 1 - np.asarray(scores)).exponent,)
    for _ in range(NUM_RESAMPLES):
        noisy = np.clip(generator.normal(scores, np.asarray(halves) / 1.96), 0.0, 1.0)
        yield fit(num_examples, 1 - noisy, start)


def _forecast(value: float, draws: Sequence[float]) -> Forecast:
    # by rank: half-way to infinity is no number
    low, high = np.percentile(draws, [2.5, 97.5], method="nearest")
    return Forecast(value, float(low), float(high))


def check_forecast(
    num_examples: Sequence[float], scores: Sequence[float], halves: Sequence[float]
) -> tuple[Forecast, float] | None:
    """Predict the largest point from the smaller ones: forecast and measurement; `None` with fewer than four sizes."""
    order = np.argsort(num_examples)
    sizes, values, widths = (np.asarray(x, dtype=float)[order] for x in (num_examples, scores, halves))
    if len(set(sizes)) < MIN_SIZES + 1:
        return None
    smaller = sizes < sizes[-1]
    found = forecast(sizes[smaller].tolist(), values[smaller].tolist(), widths[smaller].tolist(), float(sizes[-1]))
    return found, float(values[~smaller].mean())
