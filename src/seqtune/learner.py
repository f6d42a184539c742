"""The Python face: `SequenceLearner`, as scikit-learn has them, and a function for each of the main verbs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from seqtune import folders, progress
from seqtune.config import load_config, validate
from seqtune.data.frames import frame_of, name_of, settings_of
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError, DataError, RunError
from seqtune.procedures import evaluate as evaluation
from seqtune.procedures import fit as fitting
from seqtune.procedures.fit import Fitted
from seqtune.procedures.handover import hand_over, write_beside
from seqtune.procedures.predict import rows_of
from seqtune.records import Example, Prediction
from seqtune.report.notebook import Answers, Scores
from seqtune.report.page import write_report
from seqtune.scoring import evaluate as scoring
from seqtune.sections import DecodeConfig
from seqtune.training.log import read_log


class SequenceLearner(BaseEstimator):
    """Learns to turn one text into another.

    Inputs are texts (a list, or a column of numpy, pandas, polars, pyarrow or datasets), or a frame of one of these whose
    columns the template names; a frame of one column is its texts. A fitted learner can be pickled.

    Args:
        model: hub id, folder or builtin:NAME.
        template: preset or instruction text with {input}.
        epochs: passes over the rows; `None` is right for their number.
        learning_rate: AdamW's peak; `None` is right for the model's size.
        num_beams: beams when predicting.
        seed: seed of everything.
        settings: any further configuration, dotted key -> value.
        out: run folder to keep; `None` for a temporary one that is removed.
        max_minutes: stop after this much training.
        verbose: show what `seqtune fit` shows.

    Attributes:
        predictor_: the fitted model with its task.
        history_: what was logged in training, a dictionary a line: step, loss, seconds, ...

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
        max_minutes: float | None = None,
        verbose: bool = False,
    ):
        self.model = model
        self.template = template
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.num_beams = num_beams
        self.seed = seed
        self.settings = settings
        self.out = out
        self.max_minutes = max_minutes
        self.verbose = verbose

    @classmethod
    def load(cls, run: str) -> SequenceLearner:
        """A fitted learner from a run folder, whoever trained it: `seqtune fit` or a learner with `out`.

        Raises:
            SeqtuneError: there is no such run, or it is not finished.
        """
        learner = cls(out=run)
        learner.predictor_ = Predictor.of_run(run)
        learner.history_ = read_log(Path(run))
        return learner

    def fit(self, inputs: Any, outputs: Sequence[str]) -> SequenceLearner:
        """Fine-tune on pairs; all rows are trained on, nothing is held out.

        Raises:
            DataError: the sequences differ in length or hold something else than text.
        """
        rows = _rows(inputs, "inputs")
        answers = _texts(outputs, "outputs")
        if len(rows) != len(answers):
            raise DataError(f"{len(rows)} inputs but {len(answers)} outputs; they must pair up")
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "pairs.parquet"
            polars.DataFrame([row | {"output": answer} for row, answer in zip(rows, answers, strict=True)]).write_parquet(table)
            overrides: dict[str, Any] = {
                "data.path": str(table),
                "data.split": {"validation": 0.0, "test": 0.0},
                "format.template": self.template,
                "model.name": self.model,
                "train.epochs": self.epochs,
                "train.learning_rate": self.learning_rate,
                "train.max_minutes": self.max_minutes,
                "train.seed": self.seed,
                "decode.num_beams": self.num_beams,
                "out": self.out or str(Path(scratch) / "run"),
            }
            config = load_config(overrides=overrides | (self.settings or {}))
            fitted = fitting.fit(config, overwrite=self.out is not None, quiet=not self.verbose)
            self.predictor_ = Predictor.of_run(str(fitted.folder), trusted=config.model.trusted_with(fitted.folder))
            self.history_ = read_log(fitted.folder)
        return self

    def save(self, folder: str) -> None:
        """Write what was learnt as a folder, which `load` reads, and plain transformers too.

        Raises:
            RunError: the folder is in the way.
            ConfigError: an adapter was trained, which only a run can hold.
        """
        check_is_fitted(self, "predictor_")
        predictor, place = self.predictor_, Path(folder)
        if predictor.adapter_method != "full":
            raise ConfigError("save: an adapter is kept as a run; fit with out=FOLDER, and load that")
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise RunError(f"{folder!r} exists and is not empty; choose another folder")
        with folders.writing(place) as hidden:
            hand_over(predictor.model, predictor.encoder, predictor.task, predictor.decode, hidden)
            write_beside(predictor.task, predictor.decode, hidden)
            lines = "".join(f"{json.dumps(line)}\n" for line in self.history_)
            (hidden / "log.jsonl").write_text(lines, encoding="utf-8")

    def report(self) -> Path:
        """Write `report.html` into the run folder: curves, scores where rows were held out, and every wrong answer.

        Raises:
            ConfigError: there is no run folder.
        """
        check_is_fitted(self, "predictor_")
        if self.out is None:
            raise ConfigError("report: the run was temporary; fit with out=FOLDER, or load a run")
        return write_report(Path(self.out)).resolve()

    def predict(self, inputs: Any) -> np.ndarray:
        """The best hypothesis for every input, an object array [N]."""
        return np.array([p.prediction for p in self.predictions(inputs)], dtype=object)

    def decision_function(self, inputs: Any) -> np.ndarray:
        """How sure every answer is: the natural-log probability of the best hypothesis, [N]; 0 where there is no answer."""
        return np.array([p.score for p in self.predictions(inputs)])

    def predict_nbest(self, inputs: Any, n: int) -> list[list[tuple[str, float]]]:
        """The n best hypotheses of a beam search for every input, each with its log-probability (base e), best first.

        Raises:
            ConfigError: n is more than the beams that there can be.
        """
        check_is_fitted(self, "predictor_")
        decode = self.predictor_.decode.model_dump() | {"num_beams": max(n, self.predictor_.decode.num_beams), "num_return": n}
        searching = self.predictor_.searching_by(validate(DecodeConfig, decode, "decode."))
        return [[(h.text, h.score) for h in p.hypotheses] for p in searching.predict(_examples(inputs))]

    def predict_file(self, path: str, batch_size: int = 1024) -> Iterator[Prediction]:
        """Answers to a table of any size, in its order, `batch_size` of them in memory at a time; a row without text is named.

        Args:
            path: any table that `seqtune fit` reads, with the columns that the template names.
            batch_size: rows that are answered together.

        Raises:
            DataError: the table cannot be read, or a column is missing.
        """
        check_is_fitted(self, "predictor_")
        rows, rejected, said = rows_of(self.predictor_, evaluation.Questions(path))
        for line in said:
            progress.console().print(line, markup=False)
        for row in rejected:
            progress.console().print(f"skipped: {row.file}, line {row.line}: {row.reason}", style="yellow", markup=False)
        for start in range(0, len(rows), batch_size):
            yield from self.predictor_.predict(list(rows[start : start + batch_size]))

    def predictions(self, inputs: Any) -> list[Prediction]:
        """All that is known of every answer: its status, its log-probability, and, with beams, the other hypotheses.

        How many hypotheses is a setting: `SequenceLearner(num_beams=5, settings={"decode.num_return": 5})`.
        """
        check_is_fitted(self, "predictor_")
        return Answers(self.predictor_.predict(_examples(inputs)))

    def score(self, inputs: Any, outputs: Sequence[str]) -> float:
        """Exact match, in [0, 1]; outer blanks of the outputs do not count, as no answer has any."""
        found = self.predict(inputs)
        return float(np.mean([p == o.strip() for p, o in zip(found, _texts(outputs, "outputs"), strict=True)]))

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: texts in, texts out."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = False, True, True
        tags.target_tags.required = True
        return tags


def fit(data: Any, *, settings: Mapping[str, Any] | None = None, quiet: bool = False) -> Fitted:
    """What `seqtune fit` does: fine-tune on a table, measure on held-out rows, leave a run folder.

    Args:
        data: the table's name; or a frame of pandas, polars, pyarrow or datasets; or a dictionary of either with `train` and
            perhaps `validation` and `test`, such as a DatasetDict. Frames are kept in the cache folder.
        settings: dotted key -> value, such as `{"data.input": "smiles", "train.epochs": 5, "out": "runs/names"}`.
        quiet: show nothing.

    Raises:
        SeqtuneError: anything that the user can put right.

    Example:
        fitted = seqtune.fit("pairs.csv", settings={"out": "runs/names"})
        fitted.metrics["exact_match"]["value"]
    """
    return fitting.fit(load_config(overrides=settings_of(data) | dict(settings or {})), quiet=quiet)


def predict(run: str, inputs: Any, **decode: Any) -> list[Prediction]:
    """Answers of a run, in the order given.

    Args:
        run: run folder, model folder or hub id.
        inputs: texts, or a frame whose columns the template names.
        decode: settings that differ from the run's own, such as `num_beams=5`.

    Raises:
        SeqtuneError: the run cannot be loaded, or a setting is wrong.

    Example:
        seqtune.predict("runs/names", ["CCO"], num_beams=5)[0].prediction
    """
    return Answers(Predictor.of_run(run, decode).predict(_examples(inputs)))


def evaluate(run: str, data: Any, out: str | None = None, *, quiet: bool = False, **decode: Any) -> dict[str, Any]:
    """Scores of a run on a table with its columns; the content of `metrics.json`.

    Args:
        run: run folder, model folder or hub id.
        data: the table's name, or a frame; or a run: its test rows again.
        out: folder for the predictions and scores; `None` for none.
        quiet: show no progress.
        decode: settings that differ from the run's own, such as `num_beams=5`.

    Raises:
        SeqtuneError: the run or the table cannot be read.

    Example:
        seqtune.evaluate("runs/names", "test.csv")["exact_match"]["value"]
    """
    return Scores(
        evaluation.evaluate(run, evaluation.Questions(name_of(data), decode=decode), Path(out) if out else None, quiet=quiet)
    )


def compare(a: str, b: str) -> dict[str, Any]:
    """Whether two systems differ by more than chance: each metric with a paired randomisation test.

    Args:
        a: a run, an evaluation's folder, or predictions.jsonl.
        b: the other one, on the same items.

    Raises:
        DataError: they do not hold the same items.

    Example:
        seqtune.compare("runs/small", "runs/large")["exact_match"]["p_value"]
    """
    return Scores(scoring.compare(scoring.read_predictions(a), scoring.read_predictions(b)))


def _examples(inputs: Any) -> list[Example]:
    rows = _rows(inputs, "inputs")
    return [Example(str(i), row["input"], None, row) for i, row in enumerate(rows, start=1)]


def _rows(values: Any, what: str) -> list[dict[str, str]]:
    """Each row's columns; what is no frame has the column `input` alone."""
    values = frame_of(values)
    if not hasattr(values, "columns"):
        return [{"input": text} for text in _texts(values, what)]
    names = [str(name) for name in values.columns]
    if len(names) == 1:
        return [{"input": text} for text in _texts(values[values.columns[0]], what)]
    if "input" not in names:
        raise DataError(
            f"{what} is a frame without a column 'input'; rename the one that is asked about; columns: {', '.join(names)}"
        )
    columns = [_texts(values[name], f"{what}[{name!r}]") for name in values.columns]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _texts(values: Any, what: str) -> list[str]:
    if isinstance(values, str):
        raise DataError(f"{what} is a single text, {values[:40]!r}; give a list of texts: [{values[:40]!r}]")
    if isinstance(values, pyarrow.Array | pyarrow.ChunkedArray):
        values = values.to_pylist()
    texts = [v[0] if isinstance(v, np.ndarray) and v.shape == (1,) else v for v in values]
    bad = next((i for i, v in enumerate(texts) if not isinstance(v, str)), None)
    if bad is not None:
        raise DataError(f"{what}[{bad}] is a {type(texts[bad]).__name__}; every entry must be a text")
    return [str(v) for v in texts]
