"""Studies: a base configuration, axes or a search, seeds and a budget -> runs -> one tidy table; resumable, nothing twice."""

from __future__ import annotations

from seqtune.studies.archive import carbon_copy
from seqtune.studies.conduct import Outcome, run
from seqtune.studies.points import Budget, Point, Search, Study, is_done, load_study, plan, shared_prefixes
from seqtune.studies.tables import compare, summarise, tabulate
from seqtune.studies.times import seconds_left

__all__ = [
    "Budget",
    "Outcome",
    "Point",
    "Search",
    "Study",
    "carbon_copy",
    "compare",
    "is_done",
    "load_study",
    "plan",
    "run",
    "seconds_left",
    "shared_prefixes",
    "summarise",
    "tabulate",
]
