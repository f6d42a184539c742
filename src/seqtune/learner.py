"""`SequenceLearner`: the scikit-learn face."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from seqtune.config import load_config
from seqtune.decoding.predictor import Predictor
from seqtune.errors import DataError
from seqtune.procedures.fit import fit
from seqtune.records import Example


class SequenceLearner(BaseEstimator):
    """Learns to turn one text into another.

    Args:
        model: hub id, folder or builtin:NAME.
        template: preset or instruction text with {input}.
        epochs: passes over the rows; `None` is right for their number.
        learning_rate: AdamW's peak; `None` is right for the model's size.
        num_beams: beams when predicting.
        seed: seed of everything.
        settings: any further configuration, dotted key -> value.
        out: run folder to keep; `None` for a temporary one that is removed.

    Attributes:
        predictor_: the fitted model with its task.

    Example:
        learner = SequenceLearner(epochs=5).fit(["CCO", "CCC"], ["ethanol", "propane"])
        learner.predict(["CCCO"])
    """

    def __init__(
        self,
        model: str = "builtin:base",
        *,
        template: str = "plain",
        epochs: float | None = None,
        learning_rate: float | None = None,
        num_beams: int = 1,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        out: str | None = None,
    ):
        self.model = model
        self.template = template
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.num_beams = num_beams
        self.seed = seed
        self.settings = settings
        self.out = out

    def fit(self, inputs: Sequence[str], outputs: Sequence[str]) -> SequenceLearner:
        """Fine-tune on pairs; all rows are trained on, nothing is held out.

        Raises:
            DataError: the sequences differ in length or hold something else than text.
        """
        rows = {"input": _texts(inputs, "inputs"), "output": _texts(outputs, "outputs")}
        if len(rows["input"]) != len(rows["output"]):
            raise DataError(f"{len(rows['input'])} inputs but {len(rows['output'])} outputs; they must pair up")
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "pairs.parquet"
            polars.DataFrame(rows).write_parquet(table)
            overrides: dict[str, Any] = {
                "data.path": str(table),
                "data.split": {"validation": 0.0, "test": 0.0},
                "format.template": self.template,
                "model.name": self.model,
                "train.epochs": self.epochs,
                "train.learning_rate": self.learning_rate,
                "train.seed": self.seed,
                "decode.num_beams": self.num_beams,
                "out": self.out or str(Path(scratch) / "run"),
            }
            config = load_config(overrides=overrides | (self.settings or {}))
            fitted = fit(config, overwrite=self.out is not None, quiet=True)
            self.predictor_ = Predictor.of_run(str(fitted.folder), trusted=config.model.trusted_with(fitted.folder))
        return self

    def predict(self, inputs: Sequence[str]) -> np.ndarray:
        """The best hypothesis for every input, an object array [N]."""
        check_is_fitted(self, "predictor_")
        examples = [Example(str(i), text, None) for i, text in enumerate(_texts(inputs, "inputs"))]
        return np.array([p.prediction for p in self.predictor_.predict(examples)], dtype=object)

    def score(self, inputs: Sequence[str], outputs: Sequence[str]) -> float:
        """Exact match, in [0, 1]; outer blanks of the outputs do not count, as no answer has any."""
        found = self.predict(inputs)
        return float(np.mean([p == o.strip() for p, o in zip(found, _texts(outputs, "outputs"), strict=True)]))


def _texts(values: Sequence[str], what: str) -> list[str]:
    texts = list(values)
    bad = next((i for i, v in enumerate(texts) if not isinstance(v, str)), None)
    if bad is not None:
        raise DataError(f"{what}[{bad}] is a {type(texts[bad]).__name__}; every entry must be a text")
    return [str(v) for v in texts]
