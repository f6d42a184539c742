"""Scores -> pages and cards that a person reads anywhere: self-contained HTML, no network, little script; never torch.

In comes the folder of a run, an evaluation or a study. Out goes its `report.html`, with curves, tables and every wrong answer;
and the model card of a run.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__,
    {
        "page": "write_report",
        "answers": "difference",
        "study_page": "examples_for",
        "card": "model_card",
    },
)
