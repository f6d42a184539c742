"""Everything that reads a file from outside, under a name: each gives a result, or raises a `SeqtuneError`.

As a program it says what each of some files comes to, in how many seconds of the processor, and the most memory that was taken so far:

    python tests/fuzz/readers.py csv=pairs.csv sdf=compounds.sdf
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqtune import runs
from seqtune.chem import files as chemical
from seqtune.chem import pubchem, sdf
from seqtune.config import load_config
from seqtune.data.sources import read_examples
from seqtune.data.tasks import Task
from seqtune.errors import SeqtuneError
from seqtune.models.weight_files import read_settings, shapes_in, shard_names
from seqtune.procedures.tasks import listed, rendered
from seqtune.scoring.evaluate import evaluate, read_archive, read_predictions
from seqtune.sections import DataConfig
from seqtune.studies.points import load_study, plan


def table(path: Path) -> int:
    """Any kind of table; all of it is looked at, row by row too."""
    rows, rejected = read_examples(str(path), DataConfig(max_rejected=1.0), need_output=False)
    return sum(len(row.input) for row in rows) + len(rejected)


def compounds(path: Path) -> int:
    return sum(frame.height for frame in pubchem.joined(path, path, Counter()))


def structures(path: Path) -> int:
    return sum(frame.height for frame in sdf.frames([path], "preferred", Counter()))


def predictions(path: Path) -> int:
    found = read_predictions(path)
    for prediction in found:
        json.dumps(prediction.to_dict())
    return evaluate(found[:3])["num_items"]


def documents(path: Path) -> int:
    from seqtune.procedures.pretrain import read_documents  # takes torch along

    return len(read_documents([path]))


def gguf(path: Path) -> int:
    from seqtune.models.gguf import _facts  # takes torch along

    return len(_facts(path))


def tasks(path: Path) -> int:
    """Bundles, mixtures and collections: what they hold, and the first row in every template."""
    found, unreadable = listed(str(path))
    for each in found:
        with contextlib.suppress(SeqtuneError):
            rendered(str(path) if len(found) == 1 else f"{path}#{each.name}")
    return len(found) + len(unreadable)


READERS: dict[str, Callable[[Path], Any]] = {
    "csv": table,
    "jsonl": table,
    "json": table,
    "txt": table,
    "packed": table,
    "zip": table,
    "parquet": table,
    "arrow": table,
    "xlsx": table,
    "saved": lambda path: table(path.parent),
    "smi": lambda path: len(list(chemical.smi(path))),
    "sdf": lambda path: len(list(chemical.sdf(path))),
    "pubchem": compounds,
    "pubchem-sdf": structures,
    "config": load_config,
    "task": Task.load,
    "study": lambda path: plan(load_study(path)),
    "predictions": predictions,
    "archive": read_archive,
    "safetensors": shapes_in,
    "index": shard_names,
    "settings": read_settings,
    "manifest": lambda path: runs.differences(path.parent),
    "documents": documents,
    "gguf": gguf,
    "bundle": tasks,
    "mixture": lambda path: len(listed(str(path))[0]),
    "promptsource": tasks,
    "natural-instructions": tasks,
    "flan": tasks,
    "harness": tasks,
}


def outcome(name: str, path: Path) -> dict[str, Any]:
    """What a file comes to."""
    started = time.process_time()
    try:
        READERS[name](path)
        said = "read"
    except SeqtuneError as error:
        said = f"{type(error).__name__}: {error}"
    except OSError as error:  # the name of a table can be none that a file may have; the command line says it in a line
        said = f"{'OSError' if error.filename else 'broken promise'}: {error}"
    except BaseException as error:
        said = f"broken promise: {type(error).__name__}: {str(error)[:200]}"
    # not `ru_maxrss`, in which the memory of the process that started this one counts
    peak = (
        next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        // 1024
    )
    return {"file": path.name, "said": said[:500], "seconds": round(time.process_time() - started, 1), "peak_mib": peak}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        reader, _, file = argument.partition("=")
        print(json.dumps(outcome(reader, Path(file))), flush=True)
