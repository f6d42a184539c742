"""From predictions to scores: metrics, their intervals, and tests between systems; no model, never torch.

In come `Prediction`s with references. Out goes the content of `metrics.json`: a `Score` with its 95% interval and signature for
every metric, or the reason why a metric is undefined on these references. Packs bring metrics and verifiers of their own.
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
