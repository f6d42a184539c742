"""Tables -> rows -> prompts: the first room that a row passes through.

In comes the name of a table and the `data`, `format` and `task` settings. Out go `Example`s, split into training, validation
and test, and the `Prompt` that a template makes of each; the same template finds the answer in what a model writes. Rows that
cannot be used go out as `Rejected`, with file, line and reason; nothing here loads torch.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__,
    {
        "layouts": "layout_of pair_of",
        "files": "open_table",
        "sources": "check_rejected_share read_examples",
        "splits": "leakage split_examples subset",
        "templates": "PRESETS Template",
        "tasks": "Task",
    },
)
