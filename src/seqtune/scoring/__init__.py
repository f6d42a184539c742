"""From predictions to scores: metrics, their intervals, and tests between systems; no model, never torch.

In come `Prediction`s with references. Out goes the content of `metrics.json`, every value a `Score` with its 95% interval and
signature. A task's own metrics and verifier come in through the plug-in groups.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__,
    {
        "metrics": "METRICS Metric",
        "significance": "bootstrap_interval paired_randomization",
        "evaluate": "compare evaluate_task read_predictions",
    },
)
