"""Verified decoding: of the hypotheses that the search found, return the best one that a verifier passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from seqtune import plugins
from seqtune.data.tasks import Task
from seqtune.errors import ConfigError
from seqtune.plugins import Verdict, Verifier
from seqtune.records import Prediction
from seqtune.sections import DecodeConfig


def make_verifier(task: Task, decode: DecodeConfig) -> Verifier | None:
    """The verifier that the task's pack brings, if `decode.verify` asks for it.

    Raises:
        ConfigError: the task has none.
        MissingDependencyError: a package that it needs is not installed.
    """
    if not decode.verify:
        return None
    if task.pack is None or task.pack.verifier is None:
        raise ConfigError(
            "decode.verify: this task has no verifier; it needs a pack's task, for instance --set "
            f"task=chem:smiles-to-iupac when it is trained (installed: {', '.join(plugins.names('tasks'))})"
        )
    return plugins.find("verifiers", task.pack.verifier)()


def choose(predictions: Sequence[Prediction], verifier: Verifier, *, abstain: bool) -> list[Prediction]:
    """Check all hypotheses of all predictions in one batch and pick the best verified one of each.

    Without a verified one the top hypothesis is returned and flagged (`unverified`, or `not_checked` where the
    verifier could not tell), or nothing (`abstained`).

    Args:
        predictions: with their hypotheses, best first; those without any are passed on.
        verifier: sees inputs and hypotheses, never references.
        abstain: no answer rather than an unverified one.
    """
    pairs = list(dict.fromkeys((p.input, h.text) for p in predictions for h in p.hypotheses))
    verdicts = verifier.verify([source for source, _ in pairs], [text for _, text in pairs])
    found = dict(zip(pairs, verdicts, strict=True))
    return [_chosen(p, [found[p.input, h.text] for h in p.hypotheses], abstain) if p.hypotheses else p for p in predictions]


def _chosen(prediction: Prediction, verdicts: list[Verdict], abstain: bool) -> Prediction:
    rank = next((i for i, verdict in enumerate(verdicts) if verdict.verified), None)
    chosen = prediction.hypotheses[rank or 0]
    verdict = verdicts[rank or 0]
    details = {**prediction.details, "verdict": verdict.status, "rank": str((rank or 0) + 1)}
    if verdict.detail:
        details["read_back"] = verdict.detail
    text, status = chosen.text, "verified"
    if rank is None:
        status = "not_checked" if verdict.status == "not_checked" else "unverified"
        if abstain:
            text, status = "", "abstained"
    return dataclasses.replace(
        prediction,
        prediction=text,
        score=chosen.score,
        hypotheses=tuple(
            dataclasses.replace(h, verdict=v.status) for h, v in zip(prediction.hypotheses, verdicts, strict=True)
        ),
        status=status,
        details=details,
    )
