"""Lists every package that seqtune can bring in, with its pin, its licence and who asks for it: `docs/dependencies.md`.

    python docs/list_dependencies.py

It looks at what is installed here, so run it where `seqtune[all]` is. For known weaknesses: `pip-audit -r constraints.txt`,
where its database can be reached.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "dependencies.md"
EXTRAS = ("chem", "ray", "search", "track", "fast", "quant", "gguf", "serve", "bench-suites", "excel", "docs")
HEAD = """# Dependencies

Made by `docs/list_dependencies.py` from what is installed; do not edit. Licences are those that the packages state themselves.

| package | version | pinned | licence | comes with |
|---|---|---|---|---|
"""


def licence(package: metadata.Distribution) -> str:
    """What a package says of its licence, in one short line."""
    said = package.metadata
    trove = [c.rpartition(" :: ")[2] for c in said.get_all("Classifier", []) if c.startswith("License :: ")]
    text = said.get("License-Expression") or ", ".join(trove) or (said.get("License") or "").strip().partition("\n")[0]
    return re.sub(r"\s+", " ", text)[:60].replace("|", "/") or "not stated"


def asked_for(extra: str | None) -> dict[str, metadata.Distribution]:
    """All packages that seqtune, or one of its extras, brings in, directly or not."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [("seqtune", frozenset([extra]) if extra else frozenset())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name != "seqtune":
            found[name] = package
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": each or ""}) for each in extras or {""}):
                each = (canonicalize_name(needed.name), frozenset(needed.extras))
                if each not in seen:
                    seen.add(each)
                    waiting.append(each)
    return found


def main() -> None:
    """Write the page."""
    lines = (FOLDER.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    base = asked_for(None)
    who: dict[str, list[str]] = {name: ["seqtune"] for name in base}
    packages = dict(base)
    for extra in EXTRAS:
        for name, package in asked_for(extra).items():
            packages[name] = package
            if name not in base:
                who.setdefault(name, []).append(extra)
    rows = [
        f"| {name} | {each.version} | {'yes' if name in pinned else ''} | {licence(each)} | {', '.join(who[name])} |"
        for name, each in sorted(packages.items())
    ]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    print(PAGE, f"{len(rows)} packages")


if __name__ == "__main__":
    main()
