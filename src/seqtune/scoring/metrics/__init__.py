"""The text metrics. To add one, add a `Metric` to `text.METRICS`: statistics per item, and the value of their sums."""

from __future__ import annotations

from seqtune.scoring.metrics.base import Metric
from seqtune.scoring.metrics.text import METRICS

__all__ = ["METRICS", "Metric"]
