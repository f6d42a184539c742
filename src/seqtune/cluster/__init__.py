"""The one place that knows Ray: how to enter a cluster, to send work to it, and to hear what became of it.

Training, studies, curation and prediction name the work; how it reaches a machine, in which order its results come back and
what a lost machine means is decided here. Needs seqtune[ray].
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__, {"connection": "connect", "mapping": "mapped", "tasks": "Task Tasks", "training": "Training"}
)
