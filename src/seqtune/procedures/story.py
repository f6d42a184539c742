"""What a run has to tell a person when it ends: how good, against what, on which rows it fails, and what can be done next.

All of it is read from the run folder, so it can be told again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune import runs
from seqtune.config import Config, load_config
from seqtune.data.splits import hash_order
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor, predict_with_progress
from seqtune.errors import SeqtuneError
from seqtune.models.loading import SMALL, num_parameters
from seqtune.records import Example, Prediction
from seqtune.report.scores import scores_of
from seqtune.scoring.evaluate import read_predictions
from seqtune.sections import DecodeConfig
from seqtune.tokens.preparation import training_rows

NUM_SAMPLES = 5
NUM_BASE_ROWS = 100
MAIN_SCORES = ("structure_accuracy", "macro_f1", "edit_similarity")  # the first that a task has stands beside exact match


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Attributes:
        metrics: content of `metrics.json`.
        baselines: exact match of answers that cost nothing, by what they are.
        samples: predictions to show, drawn by hash, not by success.
    """

    metrics: dict[str, Any]
    baselines: dict[str, float]
    samples: Sequence[Prediction]

    @property
    def sentence(self) -> str:
        """Exact match and the task's main score with their intervals, and what they are to be compared with."""
        exact, count = self.metrics["exact_match"], self.metrics["num_items"]
        text = f"{exact['value']:.1%} of {count:,} held-out answers are exactly right (95% interval {_interval(exact)})"
        own = next((name for name in MAIN_SCORES if name in scores_of(self.metrics)), None)
        if own:
            text += f", {own.replace('_', ' ')} {self.metrics[own]['value']:.1%} ({_interval(self.metrics[own])})"
        if self.baselines:
            text += "; " + ", ".join(f"{name}: {value:.1%}" for name, value in self.baselines.items())
        return text + "."


def _interval(score: dict[str, Any]) -> str:
    return f"{score['low']:.1%} to {score['high']:.1%}"


def ending(run: Path, *, quiet: bool = False) -> Ending | None:
    """What there is to tell; `None` for a run without test rows.

    Args:
        run: a finished run folder.
        quiet: show no progress.
    """
    if not (run / "metrics.json").exists():
        return None
    predictions = read_predictions(run)
    config = load_config(run / "config.yaml")
    rows = [Example(p.id, p.input, p.reference, p.fields, context=p.context) for p in predictions]
    order = hash_order(rows, config.train.seed, "story")
    found = {"copying the input": _share_right([p.input.strip() for p in predictions], predictions)}
    with suppress(SeqtuneError):  # the table may have gone since
        if frequent := Counter(e.output for e in training_rows(run)).most_common(1):
            found["always the most frequent answer"] = _share_right([frequent[0][0] or ""] * len(predictions), predictions)
    with suppress(SeqtuneError):  # and so may the base
        if _base_is_quick(config):
            asked = [rows[i] for i in order[:NUM_BASE_ROWS]]
            base = Predictor.of_model(config.model.name, Task.load(run / "task.yaml"), DecodeConfig())
            answers = predict_with_progress(base, asked, "base model", quiet)
            found[f"the base model ({len(asked)} of them)"] = _share_right([p.prediction for p in answers], answers)
    return Ending(runs.read_json(run / "metrics.json"), found, [predictions[i] for i in order[:NUM_SAMPLES]])


def _share_right(answers: Sequence[str], asked: Sequence[Prediction]) -> float:
    return sum(answer == p.reference for answer, p in zip(answers, asked, strict=True)) / len(asked)


def _base_is_quick(config: Config) -> bool:
    """True if it takes seconds to ask the base: small, and with weights that are not random."""
    return config.model.init == "pretrained" and num_parameters(config.model) < SMALL
