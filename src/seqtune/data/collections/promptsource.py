"""promptsource: a data set's templates in Jinja, question and answer parted by `|||`.

Format: https://github.com/bigscience-workshop/promptsource (Bach et al. 2022, arXiv 2202.01279).
"""

from __future__ import annotations

from typing import Any

LABELS = ("label", "answer", "target", "output")  # what the column with the answer is often called


def is_one(content: dict[str, Any]) -> bool:
    """True for a file of this format."""
    return "dataset" in content and isinstance(content.get("templates"), dict)


def bundle(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The keys of a bundle, by the data set's name."""
    name = "/".join(str(content[key]) for key in ("dataset", "subset") if content.get(key))
    templates = []
    for each in content["templates"].values():
        about = each.get("metadata") or {}
        templates.append(
            {
                "name": str(each.get("name") or each.get("id")),
                "template": str(each.get("jinja") or ""),
                "choices": each.get("answer_choices") or None,
                "lists_choices": bool(about.get("choices_in_prompt")),
                "original": about.get("original_task") is not False,
            }
        )
    return {name: {"about": f"templates of promptsource for the data set {name}", "language": "jinja", "templates": templates}}
