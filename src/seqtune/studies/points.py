"""A study file -> its points, each a configuration and the folder of its run.

A run is named by what decides its weights (`seqtune.studies.naming`). Points that differ in decoding alone share a run, and so
do equal points of different studies that share a `store`; each way of decoding has a folder of its own in the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from seqtune import runs
from seqtune.config import Config, load_config, validate
from seqtune.errors import ConfigError, did_you_mean
from seqtune.runs import leaves, weight_settings
from seqtune.sections import DecodeConfig, PositiveFloat, PositiveInt, Section, TrainConfig
from seqtune.studies.naming import digest, ingredients
from seqtune.yaml_files import read_yaml_mapping

SEARCH = "search.json"  # what a search has found, in the folder of its study
BUDGETS = {
    "epochs": "train.epochs",
    "steps": "train.max_steps",
    "target_tokens": "train.target_tokens",
    "minutes": "train.max_minutes",
}


class Budget(Section):
    """What all points get the same of."""

    kind: Literal["epochs", "steps", "target_tokens", "minutes"]
    value: PositiveFloat


class Range(Section):
    """Numbers that a search draws from; whole ones if both ends are."""

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="draw evenly on a logarithmic scale")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {self.low}")
        return self


class Search(Section):
    """Instead of axes: let Optuna choose the points, by the validation rows alone."""

    trials: PositiveInt = Field(description="points in all, pruned ones included")
    space: dict[str, Range | list[bool | int | float | str | None]] = Field(
        min_length=1, description="setting -> {low, high, log} or a list of choices"
    )
    metric: Literal["edit_similarity", "exact_match"] = Field(
        default="edit_similarity", description="of the validation rows; the validation whose weights are kept counts"
    )
    pruning: bool = Field(default=True, description="stop a point whose validations fall below the median of the others'")


class Study(Section):
    """The content of a study file."""

    name: str
    base: dict[str, Any] = Field(description="settings of every point, as in a configuration file")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="setting -> values; all combinations are run")
    points: list[dict[str, Any]] = Field(default_factory=list, description="instead of, or beside, axes: single points")
    search: Search | None = Field(default=None, description="instead of both: points are chosen as the results come in")
    seeds: list[int] = Field(default=[0], min_length=1, description="replicates; each seeds training and the random start")
    budget: Budget | list[Budget] | None = Field(default=None, description="equal for all points; several make one more axis")
    out: str = Field(description="folder for results and report")
    store: str | None = Field(default=None, description="folder of the runs; default: `study-runs` beside `out`")
    jobs: PositiveInt = Field(default=1, description="points run at once; they share the processors")
    cpus: PositiveInt | None = Field(default=None, description="with --ray: processors of a point; default: as on this machine")
    trusted: tuple[str, ...] = Field(default=(), exclude=True, description="set by --trust-remote-code alone, not by a file")
    gpus: float = Field(default=0.0, ge=0, description="with --ray: GPUs of a point; 0.5 lets two share one")

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if not self.axes and not self.points and self.search is None:
            raise ValueError("a study needs axes, a list of points, or a search")
        if self.search is not None:
            if self.axes or self.points:
                raise ValueError("a search chooses the points itself: leave out axes and points")
            if len(self.seeds) > 1 or isinstance(self.budget, list):
                raise ValueError("a search takes one seed and one budget")
        return self


@dataclass(frozen=True, slots=True)
class Length:
    """How long a training is, in the unit of the setting that ends it; only lengths of one unit can be compared.

    Attributes:
        unit: `steps` where there is a limit of steps, else `target_tokens` or `epochs`.
        value: how many; `None` if the epochs are left to the table's size.
    """

    unit: Literal["steps", "target_tokens", "epochs"]
    value: float | None

    @classmethod
    def of(cls, train: TrainConfig) -> Length:
        """The length that the settings give.

        Example:
            >>> Length.of(TrainConfig(epochs=1000, max_steps=5))
            Length(unit='steps', value=5)
        """
        if train.max_steps:
            return cls("steps", train.max_steps)
        return cls("target_tokens", train.target_tokens) if train.target_tokens else cls("epochs", train.epochs)


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of a study.

    Attributes:
        values: axis -> value, with `seed` and `budget`.
        config: resolved.
        run: the run folder.
        beginning: equal for points whose trainings differ in the value of their length alone, in the same unit.
    """

    values: dict[str, Any]
    config: Config
    run: Path
    beginning: str

    @property
    def evaluation(self) -> Path:
        """Where its scores lie: a folder in the run, named by the way of decoding."""
        return evaluation_folder(self.run, self.config.decode)

    @property
    def length(self) -> Length:
        """How long it trains."""
        return Length.of(self.config.train)

    @property
    def prefix(self) -> str | None:
        """Equal for points whose trainings begin alike, so that a longer one can go on from a shorter; `None` if none can."""
        return self.beginning if why_no_prefix(self.config) is None else None


def evaluation_folder(run: Path, decode: DecodeConfig) -> Path:
    """Where the scores of a run lie, decoded this way."""
    return run / "evaluations" / digest(decode.model_dump())


def load_study(path: Path, trusted: Sequence[str] = ()) -> Study:
    """Read a study file.

    Args:
        path: YAML.
        trusted: models whose own Python code may run, by name; what the file says about that does not count.

    Raises:
        ConfigError: it is missing, or a key or axis is wrong; names all of them.
    """
    study: Study = validate(Study, read_yaml_mapping(path, "study")).model_copy(update={"trusted": tuple(trusted)})
    known = {*leaves(Config()), "data.split"}
    named = (*study.axes, *(k for p in study.points for k in p), *(study.search.space if study.search else ()))
    unknown = [key for key in named if key not in known]
    if unknown:
        lines = [f"{key}: no setting of that name{did_you_mean(key, known)}" for key in dict.fromkeys(unknown)]
        raise ConfigError("the study names axes that do not exist:\n" + "\n".join(f"  {line}" for line in lines))
    if "train.seed" in named:
        raise ConfigError("train.seed is no axis of a study, because `seeds` sets it: seeds: [0, 1, 2]")
    return study


def plan(study: Study) -> list[Point]:
    """All points of a grid, in the order of the axes; of a search, none.

    Raises:
        ConfigError: a point's settings do not go together.
    """
    combinations = [dict(zip(study.axes, values, strict=True)) for values in itertools.product(*study.axes.values())]
    chosen = (combinations if study.axes else []) + study.points
    budgets = study.budget if isinstance(study.budget, list) else [study.budget]
    return [make_point(study, values, budget, seed) for budget in budgets for values in chosen for seed in study.seeds]


def make_point(study: Study, values: dict[str, Any], budget: Budget | None, seed: int) -> Point:
    """One point, by its values along the axes.

    Raises:
        ConfigError: its settings do not go together.
    """
    overrides: dict[str, Any] = dict(values) | {"train.seed": seed, "model.trust_remote_code": study.trusted}
    shown = dict(values) | {"seed": seed}
    if budget is not None:
        value: Any = int(budget.value) if budget.kind in ("steps", "target_tokens") else budget.value
        overrides[BUDGETS[budget.kind]] = value
        if budget.kind in ("minutes", "steps"):  # they end it, not the number of epochs
            overrides["train.epochs"] = 1000
        shown["budget"] = f"{budget.value:g} {budget.kind}"
    config = load_config(None, _flattened(study.base) | overrides)
    store = Path(study.store) if study.store else default_store(Path(study.out).parent)
    settings, files = weight_settings(config), ingredients(config)
    run = store / digest([settings, files])
    unit = BUDGETS[Length.of(config.train).unit]
    beginning = digest([unit, {k: v for k, v in settings.items() if k != unit}, files])
    return Point(shown, config.model_copy(update={"out": str(run)}), run, beginning)


def default_store(folder: Path) -> Path:
    """Where studies keep their runs: apart from a person's own `runs`, unless earlier studies have put theirs there."""
    return folder / ("runs" if any((folder / "runs").glob("*.lock")) else "study-runs")


def points_of(study: Study) -> list[Point]:
    """A grid's points, or those that a search has finished so far, each once."""
    if study.search is None:
        return plan(study)
    trials = [trial for trial in read_search(study).get("trials", []) if trial["state"] == "complete"]
    points = [trial_point(study, trial["values"]) for trial in trials]
    return list({point.run: point for point in points}.values())


def trial_point(study: Study, values: dict[str, Any]) -> Point:
    """The point of a search's trial, by its values."""
    assert not isinstance(study.budget, list)  # a search has one budget and one seed
    return make_point(study, values, study.budget, study.seeds[0])


def read_search(study: Study) -> dict[str, Any]:
    """What a search has written down so far: `trials`, `best`, `importances`."""
    path = Path(study.out) / SEARCH
    return runs.read_json(path) if path.exists() else {}


def has_validation(config: Config) -> bool:
    """True if there are rows to validate on."""
    return bool(config.data.validation_path or config.data.split.validation or config.data.split.method == "column")


def why_no_prefix(config: Config) -> str | None:
    """Why the beginning of this training depends on its length; `None` if a longer one begins exactly as a shorter one."""
    train = config.train
    if train.schedule != "constant":
        return f"train.schedule {train.schedule!r} spreads the rates over the length; 'constant' does not"
    if train.warmup != 0:
        return "train.warmup is a share of the length; 0 is not"
    if has_validation(config):
        return "validations along the way choose the weights that are kept; data.split.validation 0 leaves them out"
    if train.max_minutes:
        return "train.max_minutes ends it at a time, not at a step"
    if Length.of(train).value is None:
        return "train.epochs is left to the table's size"
    return None


def shared_prefixes(points: Sequence[Point]) -> list[str]:
    """What is said about trainings that differ in length alone: which are one training, and which cannot be."""
    by_beginning: dict[str, list[Point]] = {}
    for point in points:
        by_beginning.setdefault(point.beginning, []).append(point)
    several = [group for group in by_beginning.values() if len({p.length for p in group}) > 1]
    shared = [group for group in several if group[0].prefix]
    lines = []
    if shared:
        count = sum(len({p.run for p in group}) for group in shared)
        lines.append(f"{count} trainings that differ in length alone are {len(shared)}, scored along the way")
    reasons = dict.fromkeys(why_no_prefix(group[0].config) for group in several if not group[0].prefix)
    lines += [f"trainings that differ in length alone each begin anew: {reason}" for reason in reasons]
    return lines


def _flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" != "data.split":
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_done(point: Point) -> bool:
    """True once the point has its scores."""
    return runs.is_complete(point.run) and (point.evaluation / "metrics.json").exists()


def chains(points: Sequence[Point]) -> list[list[Point]]:
    """Points that one worker takes in this order: those of one run, and trainings that go on from each other."""
    together: dict[str, list[Point]] = {}
    for point in points:
        together.setdefault(point.prefix or str(point.run), []).append(point)
    return [sorted(chain, key=lambda p: (p.length.value or 0, str(p.run))) for chain in together.values()]
