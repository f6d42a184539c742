"""Small tables: what the defaults, and changes to them, reach on held-out rows.

    python bench/small_tables.py run WORK --points default --tasks phonemes-500 --seeds 0 1 2
    python bench/small_tables.py table

A run appends one line to `bench/small_tables.jsonl` and is not made again. Each seed draws its own table and its own 500 test
rows. Every validation's weights are kept while a run lasts, so that one run tells what each rule of keeping weights would give.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import gzip
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.nn import functional

from seqtune.config import load_config
from seqtune.decoding.predictor import Predictor
from seqtune.models.loss import TargetLoss
from seqtune.procedures import fit
from seqtune.records import Batch, Encoded
from seqtune.scoring.metrics import METRICS
from seqtune.tokens.batching import collate
from seqtune.tokens.preparation import Prepared, prepare
from seqtune.training.loop import Trainer

DATA = Path(__file__).resolve().parents[2] / "shared/data"
RESULTS = Path(__file__).with_suffix(".jsonl")
NUM_TEST = 500
# file, column read, column written, most characters of each
SOURCES = {
    "phonemes": ("tasks/cmudict_g2p", "input", "output", 8, 99),
    "names": ("smiles_iupac/train", "smiles", "iupac", 20, 30),
    "structures": ("smiles_iupac/train", "iupac", "smiles", 30, 20),
    "dates": ("tasks/datetime_timex_en", "input", "output", 60, 40),
    "sentiment": ("benchmarks/sst2", "sentence", "label", 60, 9),
    "sql": ("tasks/wikisql", "input", "output", 50, 90),
}
WORDS = {"0": "negative", "1": "positive"}


def rows_of(source: str) -> list[tuple[str, str]]:
    """The pairs of a task, inputs once each, in the file's order."""
    file, read, written, longest, most = SOURCES[source]
    with gzip.open(DATA / f"{file}.tsv.gz", "rt", encoding="utf-8") as handle:
        lines = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        pairs = {line[read].strip(): line[written].strip() for line in lines}
    if source == "phonemes":
        pairs = {word: sounds for word, sounds in pairs.items() if word.isalpha()}
    if source == "dates":  # the hour of the reference is midnight or noon, and hardly ever needed
        pairs = {text.replace("T00:00:00", "").replace("T12:00:00", ""): date for text, date in pairs.items()}
    if source == "sentiment":
        pairs = {text: WORDS[label] for text, label in pairs.items()}
    return [(a, b) for a, b in pairs.items() if a and b and len(a) <= longest and len(b) <= most]


def tables(work: Path, task: str, seed: int) -> tuple[Path, Path]:
    """The table that a user would have, and the test rows that nobody sees."""
    source, _, size = task.partition("-")
    rows = rows_of(source)
    random.Random(seed).shuffle(rows)
    num_test = min(NUM_TEST, len(rows) - int(size))
    paths = work / f"{task}-{seed}.csv", work / f"{task}-{seed}-test.csv"
    for path, part in zip(paths, (rows[num_test : num_test + int(size)], rows[:num_test]), strict=True):
        with path.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([("input", "output"), *part])
    return paths


# ---- prototypes: what a point changes beside settings


def with_dropout(model: Any, share: float) -> None:
    """Dropout on the embeddings and on what each attention and each MLP adds."""

    def drop(module: Any, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return functional.dropout(output[0], share), *output[1:]
        return functional.dropout(output, share)

    model.get_input_embeddings().register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


class NoisyLoss(TargetLoss):
    """Label smoothing, and random tokens in what is read."""

    smoothing = noise = 0.0

    def forward(self, batch: Batch) -> torch.Tensor:
        """Summed loss."""
        if self.noise:
            ids = batch.input_ids_BT
            other = torch.randint_like(ids, self.model.config.vocab_size)
            batch = dataclasses.replace(batch, input_ids_BT=torch.where(torch.rand(ids.shape) < self.noise, other, ids))
        if not self.smoothing:
            return super().forward(batch)
        head: Any = self.model.get_output_embeddings()
        logits = head(self._hidden(batch)).float()
        return functional.cross_entropy(logits, batch.targets_N, reduction="sum", label_smoothing=self.smoothing)


def respelt(prepared: Prepared, share: float, copies: int) -> list[Encoded]:
    """The rows several times, merges left out at random in what is read (BPE-dropout)."""
    tokenizer: Any = copy.deepcopy(prepared.encoder.tokenizer)
    model = tokenizer.backend_tokenizer.model
    model.dropout = share
    tokenizer.backend_tokenizer.model = model
    rows = list(prepared.encoded)
    for _ in range(copies - 1):
        sources = tokenizer([p.source for p in prepared.prompts], add_special_tokens=False)["input_ids"]
        for ids, row in zip(sources, prepared.encoded, strict=True):
            source = [*prepared.encoder.start, *ids]
            rows.append(Encoded(np.array([*source, *row.input_ids[row.loss_start :]], dtype=np.int32), len(source)))
    return rows


@dataclasses.dataclass(frozen=True)
class Point:
    """Settings, and prototypes."""

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    fewest: int = 0
    dropout: float = 0.0
    smoothing: float = 0.0
    noise: float = 0.0
    respelling: float = 0.0


POINTS = {
    "default": Point(),
    "smooth.1": Point(smoothing=0.1),
    "drop.1": Point(dropout=0.1),
    "drop.2": Point(dropout=0.2),
    "noise.1": Point(noise=0.1),
    "count5": Point(fewest=5),
    "count10": Point(fewest=10),
    "count10 rate/3": Point({"train.learning_rate": 2e-3, "train.muon_learning_rate": 0.007}, fewest=10),
    "count10 drop.1": Point(fewest=10, dropout=0.1),
    "count10 smooth.1": Point(fewest=10, smoothing=0.1),
    "drop.1 smooth.1": Point(dropout=0.1, smoothing=0.1),
    "count10 drop.1 smooth.1": Point(fewest=10, dropout=0.1, smoothing=0.1),
    "decay1": Point({"train.weight_decay": 1.0}),
    "rate/3": Point({"train.learning_rate": 2e-3, "train.muon_learning_rate": 0.007}),
    "respell.1": Point(respelling=0.1),
}


# ---- one run


@dataclasses.dataclass
class Kept:
    """A validation: its scores, and the weights that had them."""

    scores: dict[str, float]
    weights: dict[str, torch.Tensor]


def scores_of(model: Any, prepared: Prepared, rows: list[Any]) -> dict[str, float]:
    """Exact match, edit similarity and loss a token, with the standard error of each mean over rows."""
    predictor = Predictor(model, prepared.encoder.tokenizer, prepared.task, prepared_decode)
    found = predictor.predict(rows)
    texts, references = [p.prediction for p in found], [p.reference or "" for p in found]
    matches = np.array([t == r for t, r in zip(texts, references, strict=True)], dtype=float)
    edit = METRICS["edit_similarity"]
    similarities = [edit.value(edit.statistics([t], [r]).sum(axis=0)) for t, r in zip(texts, references, strict=True)]
    encoded = prepared.encoder.encode([prepared.task.rendering.render(e) for e in rows])
    usable = sorted((row for row in encoded if isinstance(row, Encoded)), key=lambda row: len(row.input_ids))
    losses: list[float] = []
    with torch.no_grad():
        for start in range(0, len(usable), 64):
            part = usable[start : start + 64]
            each = TargetLoss.token_losses(loss_of(model), collate(part, 0))
            losses += [x.sum().item() for x in each.split([row.num_loss_tokens for row in part])]
    return {
        "em": matches.mean(), "edit": float(np.mean(similarities)), "loss": float(np.mean(losses)),
        "sum": float(np.mean(matches + similarities)), "sum_error": stats.sem(matches + similarities), "em_error": stats.sem(matches), "edit_error": stats.sem(similarities), "loss_error": stats.sem(losses),
    }  # fmt: skip


def loss_of(model: Any) -> TargetLoss:
    """The loss of a model, made once."""
    if getattr(model, "_loss", None) is None:
        object.__setattr__(model, "_loss", TargetLoss(model))
    return model._loss


prepared_decode = load_config().decode


def run(work: Path, name: str, task: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once; the scores of every validation, and of the test rows for the weights that any rule keeps."""
    point = POINTS[name]
    table, test = tables(work, task, seed)
    folder = Path(tempfile.mkdtemp(dir=work))
    config = load_config(
        overrides={
            "data.path": str(table), "data.test_path": str(test), "out": str(folder), "train.seed": seed,
            "train.checkpoint_minutes": 1e9, "train.max_steps": steps or None, **({"model.min_token_count": point.fewest} if point.fewest > 1 else {}), **point.settings,
        }
    )  # fmt: skip
    prepared = prepare(config)
    model, _ = fit.starting_point(config, prepared)
    if point.dropout:
        with_dropout(model, point.dropout)
    held: list[Kept] = []

    def validate(current: Any, count: int | None) -> dict[str, float]:
        current.eval()
        rows = prepared.examples["validation"][:200]
        scores = scores_of(current, prepared, rows) | {"step": trainer.state.step}
        held.append(Kept(scores, {n: p.detach().clone() for n, p in current.named_parameters()}))
        return {"exact_match": scores["em"], "num_items": float(len(rows))}

    rows: Any = prepared.encoded
    settings = fit.training_settings(config, prepared, sum(p.numel() for p in model.parameters()))
    if point.respelling:
        rows = respelt(prepared, point.respelling, 8)
        settings = settings.model_copy(update={"epochs": 50 / 8})
    trainer = Trainer(model, rows, settings, folder, validate)
    if point.smoothing or point.noise:
        noisy = NoisyLoss(model)
        noisy.smoothing, noisy.noise = point.smoothing, point.noise
        trainer.loss = noisy
    begun, cpu = time.monotonic(), time.process_time()
    checkpoint = trainer.checkpoint
    trainer.checkpoint = lambda: None  # type: ignore[method-assign]
    trainer.run(quiet=True)
    line = {
        "point": name, "task": task, "seed": seed, "limit": steps, "steps": trainer.state.step, "tokens": trainer.state.num_tokens,
        "vocabulary": prepared.vocabulary.size, "parameters": trainer.num_parameters,
        "seconds": round(time.monotonic() - begun), "cpu": round(time.process_time() - cpu),
    }  # fmt: skip
    del checkpoint
    chosen = {rule: choose([k.scores for k in held]) for rule, choose in RULES.items()}
    tested = {}
    cpu = time.process_time()
    for index in sorted(set(chosen.values())):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(held[index].weights[n])
        tested[index] = scores_of(model.eval(), prepared, prepared.examples["test"])
    rounded = [{k: round(float(v), 4) for k, v in h.scores.items()} for h in held]
    line["test_cpu"] = round(time.process_time() - cpu)
    line |= {"validations": rounded, "chosen": chosen}
    line |= {"test": {i: {k: round(float(t[k]), 4) for k in ("em", "edit", "loss")} for i, t in tested.items()}}
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    folder.rmdir()
    return line


# ---- rules: which validation's weights are kept


def _best(score: Callable[[dict[str, float]], Any]) -> Callable[[list[dict[str, float]]], int]:
    return lambda held: max(range(len(held)), key=lambda i: score(held[i]))


def _last_within(name: str, sign: int) -> Callable[[list[dict[str, float]]], int]:
    """The last weights that are no more than a standard error below the best."""

    def choose(held: list[dict[str, float]]) -> int:
        best = max(held, key=lambda h: sign * h[name])
        limit = sign * best[name] - best[f"{name}_error"]
        return max(i for i, h in enumerate(held) if sign * h[name] >= limit)

    return choose


RULES = {
    "em,edit": _best(lambda h: (h["em"], h["edit"])),
    "em+edit": _best(lambda h: h["em"] + h["edit"]),
    "loss": _best(lambda h: -h["loss"]),
    "last": lambda held: len(held) - 1,
    "last em": _last_within("em", 1),
    "last em+edit": _last_within("sum", 1),
}


# ---- the table


def read() -> list[dict[str, Any]]:
    """All lines."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def _score(line: dict[str, Any], rule: str) -> float:
    """Exact match in per cent of the weights that a rule kept."""
    return 100 * line["test"][str(line["chosen"][rule])]["em"]


def _cell(values: list[float]) -> str:
    """Mean, the half of its 95% interval over seeds, and their number."""
    if not values:
        return ""
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ±{half:.1f} ({len(values)})" if half else f"{values[0]:.1f} (1)"


def table(rules: list[str], seeds: list[int] | None, steps: int) -> Iterator[str]:
    """Exact match in per cent, by point, rule and task; and its differences to the first point on the same tables."""
    lines = [line for line in read() if line["limit"] == steps and (seeds is None or line["seed"] in seeds)]
    found = {(line["point"], line["task"], line["seed"]): line for line in lines}
    tasks = sorted({task for _, task, _ in found})
    yield "point, rule".ljust(34) + "".join(task.rjust(18) for task in tasks) + "     against default"
    for point in dict.fromkeys(point for point, _, _ in found):
        for rule in rules:
            cells, differences = [], []
            for task in tasks:
                mine = {s: line for (p, t, s), line in found.items() if (p, t) == (point, task) and rule in line["chosen"]}
                cells.append(_cell([_score(line, rule) for line in mine.values()]))
                others = {s: found["default", task, s] for s in mine if ("default", task, s) in found}
                differences += [_score(mine[s], rule) - _score(line, "em,edit") for s, line in others.items()]
            yield f"{point}, {rule}".ljust(34) + "".join(cell.rjust(18) for cell in cells) + _cell(differences).rjust(20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("work", type=Path, nargs="?", default=Path(tempfile.gettempdir()) / "small-tables")
    parser.add_argument("--points", nargs="+", default=["default"])
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int, default=120, help="most steps; 0: what the defaults plan")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    options = parser.parse_args()
    if options.verb == "table":
        print("\n".join(table(options.rules, options.seeds, options.steps)))
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        done = {(line["point"], line["task"], line["seed"], line["limit"]) for line in read()}
        for seed in options.seeds or [0]:
            for name in options.points:
                for task in options.tasks:
                    if (name, task, seed, options.steps) not in done:
                        line = run(options.work, name, task, seed, options.steps)
                        with RESULTS.open("a") as handle:
                            handle.write(json.dumps(line) + "\n")
                        scores = {rule: round(_score(json.loads(json.dumps(line)), rule), 1) for rule in RULES}
                        print(
                            name,
                            task,
                            seed,
                            f"{line['steps']} steps {line['tokens']} tokens {line['seconds']} s {line['cpu']} {line['test_cpu']}",
                            scores,
                            flush=True,
                        )
