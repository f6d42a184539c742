"""The two-command demonstration: SMILES -> IUPAC names on embedded data with the embedded base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune import folders, runs
from seqtune.chem.sources import chemicals_table
from seqtune.config import Config, load_config
from seqtune.data.splits import hash_order
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor, predict_with_progress
from seqtune.procedures.fit import Fitted, fit
from seqtune.records import Example, Prediction
from seqtune.scoring.evaluate import evaluate, read_predictions

MAX_SMILES, MAX_NAME = 40, 50
TABLE, RUN_NAME = "molecules.csv", "run"
DEMO = folders.Kind(
    name="demonstration",
    marker=".seqtune-demo",
    artefacts=(TABLE,),  # the run in it is a folder of its own
    remedy="replace it with --overwrite, or choose another --out",
)
NUM_SAMPLES = 10
NUM_BASE_ROWS = 200


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demonstration shows.

    Attributes:
        fitted: the run.
        base_metrics: the base model's scores on a sample of the same test rows.
        samples: predictions to show, drawn by hash, not by success.
    """

    fitted: Fitted
    base_metrics: dict[str, Any]
    samples: Sequence[Prediction]


def build_table(folder: Path, *, overwrite: bool = False) -> tuple[Path, dict[str, int]]:
    """Write the short-molecule slice of the `chemicals` package as a table; returns its path and the counts.

    Raises:
        RunError: the folder, or the one for the run in it, is in the way.
    """
    folders.check_free(folder, DEMO, reuse=overwrite)
    folders.check_free(folder / RUN_NAME, runs.RUN, reuse=overwrite)
    frame, counts = chemicals_table(MAX_SMILES, MAX_NAME)
    folders.create(folder, DEMO)
    path = folder / TABLE
    runs.write_text(path, frame.write_csv())
    return path, counts


def configuration(table: Path, folder: Path, minutes: float) -> Config:
    """The demonstration's settings: molecules that share an InChIKey first block stay on one side."""
    return load_config(
        overrides={
            "data.path": str(table),
            "data.input": "smiles",
            "data.output": "iupac",
            "data.id": "cid",
            "data.split": {"method": "grouped", "key": "skeleton", "validation": 0.01, "test": 0.02},
            "train.max_minutes": minutes,
            "train.epochs": 20,
            "train.validate_every": 400,
            "train.validate_examples": 100,
            "train.validate_max_seconds": 10,
            "decode.num_beams": 4,
            "out": str(folder / RUN_NAME),
        }
    )


def run(config: Config, *, overwrite: bool = False) -> Demo:
    """Fine-tune, then ask the base model a sample of the same test questions.

    Raises:
        RunError: there is a run already, and `overwrite` is off.
    """
    fitted = fit(config, overwrite=overwrite, report=True)
    ours = read_predictions(fitted.folder)
    questions = [Example(p.id, p.input, p.reference) for p in ours]
    base = Predictor.of_model(config.model.name, Task.load(fitted.folder / "task.yaml"), config.decode)
    # the base model writes up to the token limit for every question, which takes long; so it gets fewer, drawn by hash
    few = [questions[i] for i in hash_order(questions, config.train.seed, "base")[:NUM_BASE_ROWS]]
    answers = predict_with_progress(base, few, "base model")
    runs.write_predictions(fitted.folder / "base_predictions.jsonl", answers)
    samples = [ours[i] for i in hash_order(questions, config.train.seed, "samples")[:NUM_SAMPLES]]
    return Demo(fitted, evaluate(answers), samples)
