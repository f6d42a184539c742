"""Metrics: per-item statistics first, then a value, an interval and a signature."""

from __future__ import annotations

from seqtune.metrics.base import Metric
from seqtune.metrics.text import METRICS

__all__ = ["METRICS", "Metric"]
