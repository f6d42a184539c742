"""The carbon copy of a study: a zip from which another person can score everything again without a model."""

from __future__ import annotations

import zipfile
from pathlib import Path

from seqtune import folders
from seqtune.errors import RunError
from seqtune.studies.execution import DECODE, FACTS, training_facts
from seqtune.studies.points import Study, is_done, points_of

OF_RUN = ("config.yaml", "environment.json", "data.json", "task.yaml", "log.jsonl")
OF_EVALUATION = ("metrics.json", "predictions.jsonl", DECODE, FACTS)
COPY_README = """# Carbon copy of the study {name}

Everything that its scores rest on, without models and without training data. To score any point again, no model needed:

    seqtune score runs/<run>/evaluations/<evaluation>/predictions.jsonl

`results.csv` names each point's run and its evaluation, one for each way of decoding (`decode.json`). The run's `config.yaml`
trains it again where the data are at hand (fingerprints: `data.json`).
`comparisons.csv` holds the paired tests between points.
"""


def carbon_copy(study: Study, path: Path) -> int:
    """Zip what another person needs to check a study: settings, environments, fingerprints, predictions, scores.

    Args:
        study: one that was run, at least in part.
        path: .zip to write.

    Returns:
        How many points are in it.

    Raises:
        RunError: nothing was run yet.
    """
    out = Path(study.out)
    done = [p for p in points_of(study) if is_done(p)]
    if not done or not (out / "results.csv").exists():
        raise RunError(f"no point of {study.name!r} has been run; run it first: seqtune study FILE")
    with folders.writing(path) as hidden, zipfile.ZipFile(hidden, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.md", COPY_README.format(name=study.name))
        for file in sorted(p for p in out.iterdir() if p.suffix in (".csv", ".yaml", ".json", ".html")):
            archive.write(file, file.name)
        trained = dict.fromkeys(p.run for p in done)
        files = [file for run in trained for file in (training_facts(run), *(run / name for name in OF_RUN))]
        files += [folder / name for folder in dict.fromkeys(p.evaluation for p in done) for name in OF_EVALUATION]
        for file in files:
            if file.exists():
                archive.write(file, f"runs/{file.relative_to(done[0].run.parent)}")
    return len(done)
