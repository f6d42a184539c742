"""From batches to weights: the loop, its optimizers and defaults, its checkpoints and its processes.

In come a model, `Encoded` rows and the `train` settings. Out come trained weights in that model, `log.jsonl`, and checkpoints
from which a stopped training goes on to the very same weights. Validation is handed in by the caller, so nothing here decodes.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__,
    {
        "loop": "Trainer",
        "checkpoints": "Outcome",
        "defaults": "resolve",
        "optim": "build_optimizers",
    },
)
