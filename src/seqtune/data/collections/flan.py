"""FLAN's list of templates: task -> pairs of a question and an answer with {columns}.

Format: the dictionary `PATTERNS` of https://github.com/google-research/FLAN (arXiv 2109.01652) as JSON. Its column `answer` is
the task's answer, and `options_` the place where the answers are listed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

NAMES = {"{options_}": "{options}", "{answer}": "{output}"}


def is_one(content: dict[str, Any]) -> bool:
    """True for a file of this format."""
    tasks = content.get("PATTERNS", content)
    return (
        isinstance(tasks, dict)
        and bool(tasks)
        and all(isinstance(pairs, list) and _are_pairs(pairs) for pairs in tasks.values())
    )


def _are_pairs(pairs: Any) -> bool:
    return (
        isinstance(pairs, list)
        and bool(pairs)
        and all(isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs)
    )


def bundle(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The keys of a bundle for each task."""
    found = {}
    for name, pairs in content.get("PATTERNS", content).items():
        targets = Counter(target for _, target in pairs)
        own = targets.most_common(1)[0][0]
        output = "answer" if any("{answer}" in target for target in targets) else own.strip("{}")
        templates = [
            {"name": str(number), "template": _named(source), "target": _named(target), "original": f"{{{output}}}" in target}
            for number, (source, target) in enumerate(pairs, start=1)
        ]
        found[name] = {"about": f"FLAN's templates for {name}", "templates": templates, "data": {"output": output}}
    return found


def _named(text: str) -> str:
    for theirs, ours in NAMES.items():
        text = text.replace(theirs, ours)
    return text
