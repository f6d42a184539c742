"""Many configurations -> many runs -> one table: a grid or a search, seeds and a budget; resumable, nothing is run twice.

In comes a study file. Each point becomes a run of its own, trained and decoded in processes of this machine or of a Ray
cluster. Out go `results.csv`, `summary.csv` and `comparisons.csv`, which the report reads.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__,
    {
        "archive": "carbon_copy",
        "conduct": "Outcome run",
        "points": "Budget Length Point Search Study is_done load_study plan shared_prefixes",
        "tables": "compare summarise tabulate",
        "times": "seconds_left",
    },
)
