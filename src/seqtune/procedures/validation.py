"""Generation-based validation during training: decode a fixed subset and score it, within a time budget."""

from __future__ import annotations

import time

from transformers import PreTrainedModel

from seqtune.config import Config
from seqtune.data.splits import hash_order
from seqtune.decoding.predictor import Predictor
from seqtune.records import Prediction
from seqtune.scoring.metrics import METRICS
from seqtune.sections import DecodeConfig
from seqtune.tokens.preparation import Prepared

METRIC_NAMES = ("exact_match", "edit_similarity")  # the first that differs ranks two validations
FIRST_ROUND = 50


class Validator:
    """Scores a model on the same rows every time, greedily.

    Rows are decoded in rounds, each four times the last. When the time budget is spent no further round
    begins; the loop then keeps to the smaller number, so that all later validations compare like with like.

    Args:
        prepared: its validation rows are drawn from.
        config: `train.validate_*`, and `decode.token_budget` for the memory. Nothing else of `decode` is used: how the run's
            answers are searched for must not decide which weights are the best.
    """

    def __init__(self, prepared: Prepared, config: Config):
        pool = prepared.examples["validation"]
        order = hash_order(pool, config.train.seed, "validation")[: config.train.validate_examples]
        self.rows = [pool[i] for i in order]
        self.tasks = [row.fields["task"] for row in self.rows] if prepared.mixture else []
        self.tokenizer = prepared.encoder.tokenizer
        self.task = prepared.task
        self.max_seconds = config.train.validate_max_seconds
        self.decode = DecodeConfig(token_budget=config.decode.token_budget)

    def __call__(self, model: PreTrainedModel, num_items: int | None) -> dict[str, float]:
        """Metrics on the first `num_items` rows (`None`: all), with the number of rows that were scored."""
        rows = self.rows[:num_items]
        predictor = Predictor(model, self.tokenizer, self.task, self.decode)
        deadline = time.monotonic() + self.max_seconds
        done: list[Prediction] = []
        size = FIRST_ROUND if num_items is None else len(rows)
        while len(done) < len(rows):
            done.extend(predictor.predict(rows[len(done) : size]))
            size *= 4
            if time.monotonic() > deadline:
                break
        texts, references = [p.prediction for p in done], [p.reference or "" for p in done]
        values = {}
        for name in METRIC_NAMES:
            metric = METRICS[name]
            values[name] = metric.value(metric.statistics(texts, references).sum(axis=0))
        for task in dict.fromkeys(self.tasks[: len(done)]):  # of a mixture
            own = [t == r for t, r, name in zip(texts, references, self.tasks, strict=False) if name == task]
            values[f"exact_match/{task}"] = sum(own) / len(own)
        return values | {"num_items": float(len(done))}
