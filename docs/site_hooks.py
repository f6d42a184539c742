"""What the site does beside mkdocs: pages outside docs/ join it, tutorials can be had as notebooks, examples are shown as code.

mkdocs calls the functions `on_...` (`hooks` in mkdocs.yml); griffe, which reads docstrings, takes the class.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

sys.path.insert(0, str(Path(__file__).parent))
from notebooks import notebook

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")  # the path of a relative link
EXAMPLE = re.compile(r"^(?P<indent> *)Example:\n(?P<code>(?:(?P=indent)    .*\n?|\n)+)", re.MULTILINE)


def target_of(page: Path, link: str) -> Path | None:
    """The file that a link in a page leads to; of a folder its README; `None` if there is none."""
    target = (page.parent / link).resolve()
    target = target / "README.md" if target.is_dir() else target
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def place_of(target: Path) -> str:
    """Where a file of the repository stands in the site."""
    return (target.relative_to(DOCS) if target.is_relative_to(DOCS) else Path("project") / target.relative_to(ROOT)).as_posix()


def outside(pages: list[Path]) -> set[Path]:
    """All files outside docs/ that pages lead to, directly or through one another."""
    found: set[Path] = set()
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target = target_of(page, link)
            if target and not target.is_relative_to(DOCS) and target not in found:
                found.add(target)
                waiting += [target] if target.suffix == ".md" else []
    return found


def on_files(files: Files, config: Any) -> Files:
    """Take in what lies outside docs/, and each tutorial as a notebook."""
    pages = [Path(f.abs_src_path) for f in files.documentation_pages()]
    for target in sorted(outside(pages)):
        text, beside = target.read_text(encoding="utf-8"), InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, place_of(target), content=text, inclusion=beside))
    for page in sorted((DOCS / "tutorials").glob("*.md")):
        if page.stem != "index":
            made = json.dumps(notebook(page.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
            files.append(File.generated(config, f"tutorials/{page.stem}.ipynb", content=made))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site; offer a tutorial as a notebook."""
    source = page.file.src_uri
    origin = ROOT / source.removeprefix("project/") if source.startswith("project/") else DOCS / source

    def moved(match: re.Match[str]) -> str:
        target = target_of(origin, match[1])
        return os.path.relpath(place_of(target), Path(source).parent) if target else match[1]

    page.meta["search"] = {"boost": 0.5 if source.startswith("project/") else 2 if source.startswith("reference/") else 1}
    if source.startswith("tutorials/") and origin.stem != "index":
        markdown = re.sub(r"\n(?=\n)", f"\n\n[This page as a notebook]({origin.stem}.ipynb)\n", markdown, count=1)
    return LINK.sub(moved, markdown)


class ExamplesAsCode(griffe.Extension):
    """Fences the code under `Example:` of a docstring, which has no marks of its own."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every class, function and module that is read."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    code, inner = match["code"].rstrip("\n"), match["indent"] + "    "
    if code.lstrip().startswith(("`", ">>>")):
        return match[0]
    return f"{match['indent']}Example:\n{inner}```python\n{code}\n{inner}```\n"
