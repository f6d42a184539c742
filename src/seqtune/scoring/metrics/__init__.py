"""Metrics: per-item statistics first, then a value, an interval and a signature."""

from __future__ import annotations

from seqtune.scoring.metrics.base import Metric
from seqtune.scoring.metrics.text import METRICS

__all__ = ["METRICS", "Metric"]
