"""Many task bundles -> one table of prompts, drawn in given proportions and in many forms.

The prompts of a task lie behind one another; it is the training that shuffles them (`tokens.batching`), so what an epoch reads,
how it resumes and how rows are packed is the same as for any table. All draws depend on the seed, the task and the place of a
row alone. Rows go through in frames, and the finished prompts lie in the cache, so memory does not grow with their number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars

from seqtune.config import Config
from seqtune.data import kept
from seqtune.data.asking import COLUMNS, Asker, MixedTask, plain_forms, training_forms
from seqtune.data.bundles import Bundle, bundle_of, read_bundle, read_rows
from seqtune.data.places import files_of
from seqtune.data.sources import check_rejected_share
from seqtune.data.splits import SPLITS, read_sides, subset
from seqtune.data.table import FIELD, FRAME_ROWS, Columns, Table, batches, take
from seqtune.errors import ConfigError, DataError, did_you_mean
from seqtune.records import Example, Rejected
from seqtune.sections import MixtureConfig

FORMAT = "1"  # changes with what is made of a row
POOL_ROWS = 1000  # of which solved examples are drawn; they are held in memory


def bundles_of(config: MixtureConfig) -> list[Bundle]:
    """The mixture's bundles, in its order.

    Raises:
        ConfigError: one cannot be read, or two have one name.
    """
    folder, found = Path(config.folder), {}
    named = config.tasks if isinstance(config.tasks, dict) else dict.fromkeys(config.tasks)
    for name, given in named.items():
        if isinstance(given, dict):
            bundle = _changed(name, given, folder)
        else:
            bundle = read_bundle(given or name, folder)
            bundle.name = name if given else bundle.name
        if bundle.name in found:
            raise ConfigError(f"mixture.tasks: two tasks are called {bundle.name!r}; name them: {{first: FILE, second: FILE}}")
        if not bundle.data.path:
            raise ConfigError(
                f"mixture.tasks: {bundle.name!r} names no table: give it one, for instance "
                f"{{{bundle.name}: {{bundle: {name}, path: rows.csv}}}}"
            )
        found[bundle.name] = bundle
    return list(found.values())


def _changed(name: str, given: dict[str, object], folder: Path) -> Bundle:
    """A bundle that is written into the mixture itself, as a whole or as changes of another one."""
    own = dict(given)
    below = own.pop("bundle", None)
    changed = bundle_of(own, name, folder, f"mixture.tasks.{name}.")
    if below is None:
        return changed
    base = read_bundle(str(below), folder)
    new = changed.model_dump(exclude_unset=True)
    data = {**base.data.model_dump(exclude_unset=True), **changed.data.model_dump(exclude_unset=True)}
    return bundle_of({**base.model_dump(exclude_unset=True), **new, "data": data, "name": name}, name, Path())


def open_mixture(config: MixtureConfig, rejected: list[Rejected]) -> list[MixedTask]:
    """Read the tables, and decide how often each task is asked.

    Args:
        config: the mixture.
        rejected: rows that cannot be used are added.

    Raises:
        ConfigError: a name is unknown, or nothing is left to train on.
        DataError: a table cannot be read.
    """
    bundles = bundles_of(config)
    names, clusters = [b.name for b in bundles], {b.cluster for b in bundles if b.cluster}
    known = [*names, *sorted(clusters)]
    for key, given in (("held_out", config.held_out), ("only", config.only or ()), ("weights", config.weights)):
        allowed = names if key == "weights" else known
        for name in given:
            if name not in allowed:
                raise ConfigError(
                    f"mixture.{key}: there is no task{'' if key == 'weights' else ' or cluster'} {name!r}"
                    f"{did_you_mean(name, allowed)}; there are {', '.join(allowed)}"
                )
    tasks = [MixedTask(b, b.name in config.held_out or b.cluster in config.held_out) for b in bundles]
    for task in tasks:
        task.sides = _sides(task.bundle, rejected)
    tested, held_out = _hashes(tasks, SPLITS[1:]), _hashes([task for task in tasks if task.held_out], SPLITS)
    for task in tasks:
        unseen = tested if task.held_out else np.union1d(tested, held_out)
        task.sides["train"] = _without(task.sides["train"], unseen)
        task.pool = _pool(task, unseen, rejected)
    trained = [
        t for t in tasks if not t.held_out and (config.only is None or t.name in config.only or t.bundle.cluster in config.only)
    ]
    if not trained:
        raise ConfigError("mixture: no task is left to train on; see mixture.held_out and mixture.only")
    _share_out(trained, config)
    return tasks


def _share_out(trained: Sequence[MixedTask], config: MixtureConfig) -> None:
    """Shares in proportion to min(rows, max_examples, max_rate)^(1/temperature), or as the weights say; counts to match."""
    rows = np.array([min(len(t.sides["train"]), config.max_examples) for t in trained], np.float64)
    if empty := [t.name for t, count in zip(trained, rows, strict=True) if not count]:
        raise ConfigError(
            f"mixture.tasks: {empty[0]!r} has no training row, or none that no held-out task has; see its data.split"
        )
    rates = np.minimum(rows, config.max_rate or np.inf)
    weights = [config.weights.get(t.name) for t in trained]
    if any(weights):
        if lacking := [t.name for t, weight in zip(trained, weights, strict=True) if weight is None]:
            raise ConfigError(
                f"mixture.weights names some tasks and not {', '.join(lacking)}; give all of them a weight, or none"
            )
        shares = np.array(weights, np.float64)
    else:
        shares = rates ** (1 / config.temperature)
    shares /= shares.sum()
    total = config.num_examples or int(rates.sum())
    counts = np.diff(np.round(np.concatenate([[0.0], shares.cumsum()]) * total).astype(np.int64))
    for task, share, count in zip(trained, shares, counts, strict=True):
        task.share, task.count = float(share), max(1, int(count))


def _sides(bundle: Bundle, rejected: list[Rejected]) -> dict[str, Table]:
    """The task's rows by split."""

    def read(path: str) -> Table:
        table, bad = read_rows(path, bundle.reading)
        check_rejected_share(bad, len(table) + len(bad), bundle.data.max_rejected)
        rejected.extend(bad)
        key = table.key or kept.key_of(kept.digest(*files_of(path)), bundle.reading)
        for column, value in bundle.where.items():
            if column not in table.columns.fields:
                raise ConfigError(
                    f"{bundle.name}: where names the column {column!r}, which {path!r} has not"
                    f"{did_you_mean(column, table.columns.fields)}; columns: {', '.join(table.columns.fields)}"
                )
            inside = [frame[FIELD + column].fill_null("").str.strip_chars() == value for frame in table.batches(FIELD + column)]
            table = take(table, np.flatnonzero(polars.concat(inside).to_numpy()).astype(np.int32))
        if not len(table):
            raise ConfigError(f"{bundle.name}: {path!r} has no row with {bundle.where}")
        return replace(table, key=kept.key_of(key, sorted(bundle.where.items())))

    sides = read_sides(bundle.reading, read)
    sides["train"] = subset(sides["train"], bundle.data.num_examples, bundle.data.split.seed)
    if any(frame["context"].is_not_null().any() for frame in sides["train"].batches("context")):
        raise ConfigError(
            f"{bundle.name}: {bundle.data.path!r} holds conversations, which cannot be mixed; give columns with texts"
        )
    _check_columns(bundle, next(iter(sides["train"] or sides["test"])))
    return sides


def _check_columns(bundle: Bundle, first: Example) -> None:
    """Refuse templates in braces that name what the table has not; Jinja may ask whether a column is there."""
    for name, column in bundle.columns.items():
        if column not in first.fields:
            raise ConfigError(
                f"{bundle.name}: columns names {column!r} as {name!r}, which is no column of {bundle.data.path!r}"
                f"{did_you_mean(column, first.fields)}; columns: {', '.join(first.fields)}"
            )
    for wording in bundle.wordings if bundle.language == "braces" else ():
        for name in wording.columns:
            if name not in first.fields and name not in bundle.columns:
                raise ConfigError(
                    f"{bundle.name}: the template {wording.source[:60]!r} uses {{{name}}}, which is no column of "
                    f"{bundle.data.path!r}{did_you_mean(name, first.fields)}; give `columns: {{{name}: COLUMN}}`; "
                    f"columns: {', '.join(first.fields)}"
                )
    if bundle.chain and bundle.chain not in first.fields:
        raise ConfigError(
            f"{bundle.name}: chain = {bundle.chain!r} is no column of {bundle.data.path!r}; columns: {', '.join(first.fields)}"
        )


def _pool(task: MixedTask, unseen: np.ndarray, rejected: list[Rejected]) -> Sequence[Example]:
    """Rows that solved examples are drawn from; never validation or test rows, nor rows of held-out tasks."""
    rows: Table = task.sides["train"]
    if task.bundle.pool:
        rows, bad = read_rows(task.bundle.pool, task.bundle.reading)
        rejected.extend(bad)
        rows = _without(rows, unseen)
        if not len(rows):
            raise ConfigError(f"{task.name}: pool = {task.bundle.pool!r} holds no row that is not held out")
    return list(subset(rows, POOL_ROWS, 0))


def _hashes(tasks: Sequence[MixedTask], sides: Sequence[str]) -> np.ndarray:
    """Hashes of all rows on some sides of tasks, uint64 [N]."""
    found = [part for task in tasks for side in sides for part in _row_hashes(task.sides[side])]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))


def _without(rows: Table, unseen: np.ndarray) -> Table:
    """The rows that are not among these, under whatever names their columns go."""
    if not len(unseen):
        return rows
    clean = np.concatenate([np.zeros(0, bool), *(~np.isin(part, unseen) for part in _row_hashes(rows))])
    if clean.all():
        return rows
    key = rows.key and kept.key_of(rows.key, unseen.tobytes())
    return replace(take(rows, np.flatnonzero(clean).astype(np.int32)), key=key)


def _row_hashes(rows: Table) -> Iterator[np.ndarray]:
    """A hash of all cells of each row, whatever the columns are called and in whatever order they stand, frame by frame."""
    names = [FIELD + name for name in rows.columns.fields]
    cells = polars.sum_horizontal(polars.col(name).fill_null("").hash() for name in names)
    for frame in batches(rows, *names):
        yield frame.select(cells.alias("hash"))["hash"].to_numpy()


def between(config: Config) -> str:
    """What stands between a question and its answer where both are text."""
    return config.format.separator


def mixed_sides(tasks: Sequence[MixedTask], config: Config, rejected: list[Rejected]) -> dict[str, Table]:
    """The mixture as one table a split: training prompts as they are drawn, validation and test prompts as plain questions.

    Args:
        tasks: of `open_mixture`.
        config: with the mixture.
        rejected: rows that no prompt can be made of are added.

    Raises:
        DataError: that is all of them.
    """
    mixture = config.mixture
    assert mixture is not None
    trained = [task for task in tasks if task.count]
    made = {}
    for side in SPLITS:
        frames = functools.partial(_training_frames if side == "train" else _test_frames, trained, config, side)
        rows = [(t.bundle, t.count, *map(kept.rows_key, t.sides.values())) for t in trained]
        key = kept.key_of(FORMAT, side, mixture, rows, between(config), config.train.seed)
        found, faults = kept.frames(key, frames)
        rejected += [Rejected("mixture", number, reason) for number, reason in faults]
        made[side] = Table(found, Columns("mixture", COLUMNS), key=key)
        if side == "train" and not len(found):
            raise DataError(f"mixture: no prompt can be made of any training row; first: {faults[0][1]}")
    return made


def _training_frames(
    tasks: Sequence[MixedTask], config: Config, side: str, faults: list[tuple[int, str]]
) -> Iterator[polars.DataFrame]:
    """The drawn prompts, task by task, in frames."""
    mixture, seed, number = config.mixture, config.train.seed, 0
    assert mixture is not None
    for place, task in enumerate(tasks):
        asker = Asker(task, seed, between(config), mixture.max_characters)
        generator = np.random.default_rng([seed, place])
        for rows in _passes(task, mixture, seed):
            for chunk in (rows[start : start + FRAME_ROWS] for start in range(0, len(rows), FRAME_ROWS)):
                forms = training_forms(task, mixture, len(chunk), generator)
                frame = asker.frame(zip(chunk, forms, strict=True), number, faults)
                number += len(chunk)
                if len(frame):
                    yield frame


def _passes(task: MixedTask, mixture: MixtureConfig, seed: int) -> Iterator[Table]:
    """The task's rows as often as it takes to draw so many; the last time only some of them."""
    rows = subset(task.sides["train"], mixture.max_examples, seed)
    whole, rest = divmod(task.count, len(rows))
    yield from (rows for _ in range(whole))
    if rest:
        yield subset(rows, rest, seed + 1)


def asked_rows(task: MixedTask, side: str, most: int) -> Table:
    """The rows of a split that are asked: at most so many, chosen by hash."""
    return subset(task.sides[side], most, 0)


def _test_frames(
    tasks: Sequence[MixedTask], config: Config, side: str, faults: list[tuple[int, str]]
) -> Iterator[polars.DataFrame]:
    mixture, number = config.mixture, 0
    assert mixture is not None
    for task in tasks:
        rows = asked_rows(task, side, mixture.test_examples)
        frame = plain_frame(task, rows, config, 0, number, faults)
        number += len(rows)
        if len(frame):
            yield frame


def plain_frame(
    task: MixedTask, rows: Table, config: Config, num_shots: int, first: int, faults: list[tuple[int, str]]
) -> polars.DataFrame:
    """Rows as plain questions after so many solved examples."""
    mixture = config.mixture
    assert mixture is not None
    forms = plain_forms(task, mixture, len(rows), num_shots, np.random.default_rng(0))
    return Asker(task, 0, between(config), mixture.max_characters, testing=True).frame(
        zip(rows, forms, strict=True), first, faults
    )
