"""Draw `docs/architecture.svg` from the imports and the layer contract; a test fails when the picture is out of date.

    python docs/draw_architecture.py

A box is a room with its modules; a row of boxes is a layer of `[tool.importlinter]`. An arrow says that a room imports another;
what follows from other arrows is not drawn.
"""

from __future__ import annotations

import textwrap
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_suffix("").with_name("architecture.svg")
BOX, COLUMN, GAP, LINE, MARGIN = 232, 262, 40, 15, 20
WIDTH = 3 * COLUMN + BOX + 2 * MARGIN
CHARACTERS = 36  # of module names in a line of a box
# where a room stands from left to right, so that few arrows pass behind a box
COLUMNS = {
    "cli": 0.6, "serving": 0.6, "learner": 1.8, "procedures": 1.0, "report": 2.0, "studies": 2.0, "training": 0.0,
    "decoding": 1.0, "tokens": 0.5, "models": 0.0, "scoring": 2.0, "chem": 3.0, "data": 1.5, "cluster": 3.0, "ground": 0.0,
}  # fmt: skip
# the rooms that a row of a table passes through, in order
WALK = ("data", "tokens", "models", "training", "decoding", "scoring", "report")


def layers() -> list[list[str]]:
    """Rooms from the top floor down; the ground is one room."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(c["layers"] for c in contracts if c["type"] == "layers")
    return [["ground"] if ":" in row else [name.strip().removeprefix("seqtune.") for name in row.split("|")] for row in rows]


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that it imports."""
    graph = grimp.build_graph("seqtune", exclude_type_checking_imports=True)
    rooms = {room for row in layers() for room in row}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for module in sorted(graph.modules):
        for other in graph.find_modules_directly_imported_by(module):
            ours, theirs = room_of(module, rooms), room_of(other, rooms)
            if ours and theirs and ours != theirs:
                found[ours].add(theirs)
    return found


def room_of(module: str, rooms: set[str]) -> str | None:
    """The room of a module; what lies in the root is the ground, but for the package itself."""
    part = module.split(".")[1:2]
    if not part or part == ["__main__"]:
        return None
    return part[0] if part[0] in rooms else "ground"


def without_detours(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others (transitive reduction)."""

    def reached(room: str) -> set[str]:
        return set().union(*({other} | reached(other) for other in graph[room])) if graph[room] else set()

    return [(a, b) for a in graph for b in graph[a] if not any(b in reached(c) for c in graph[a] - {b})]


def modules_of(room: str) -> str:
    """A room's modules, packages in it with a slash."""
    folder = ROOT / "src" / "seqtune" / ("" if room == "ground" else room)
    if (ROOT / "src" / "seqtune" / f"{room}.py").exists():
        return "the scikit-learn face"
    names = [p.stem for p in sorted(folder.glob("*.py")) if not p.stem.startswith("__") and p.stem != "learner"]
    packages = [f"{p.parent.name}/" for p in sorted(folder.glob("*/__init__.py"))] if room != "ground" else []
    return "  ".join([*names, *packages])


def draw() -> str:
    """The picture as SVG text."""
    places: dict[str, tuple[float, float, float, float]] = {}
    boxes = []
    y = float(MARGIN)
    for row in layers():
        lines = {room: textwrap.wrap(modules_of(room), CHARACTERS if room != "ground" else 140) for room in row}
        width = BOX if row != ["ground"] else WIDTH - 2 * MARGIN
        height = 30 + LINE * max(map(len, lines.values()))
        for room in row:
            x = MARGIN + COLUMNS[room] * COLUMN
            places[room] = (x, y, width, height)
            size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height}"'
            boxes.append(f'<rect {size} rx="6" fill="#ffffff" stroke="#2563a8"/>')
            boxes.append(f'<text x="{x + 12:g}" y="{y + 19:g}" font-weight="bold" fill="#1f2937">{escape(room)}</text>')
            if room in WALK:
                boxes.append(f'<circle cx="{x + width - 16:g}" cy="{y + 15:g}" r="9" fill="#c2571a"/>')
                number = WALK.index(room) + 1
                boxes.append(f'<text x="{x + width - 16:g}" y="{y + 19:g}" text-anchor="middle" fill="#ffffff">{number}</text>')
            for k, text in enumerate(lines[room]):
                at = f'x="{x + 12:g}" y="{y + 36 + LINE * k:g}"'
                boxes.append(f'<text {at} fill="#4b5563" font-size="10.5">{escape(text)}</text>')
        y += height + GAP
    arrows = []
    for a, b in sorted(without_detours(imports())):
        (ax, ay, aw, ah), (bx, by, bw, _) = places[a], places[b]
        x1, y1, y2 = ax + aw / 2, ay + ah, by
        x2 = x1 if b == "ground" else bx + bw / 2
        middle = (y1 + y2) / 2
        path = f"M{x1:g},{y1:g} C{x1:g},{middle:g} {x2:g},{middle:g} {x2:g},{y2 - 4:g}"
        arrows.append(f'<path d="{path}" fill="none" stroke="#8a94a3" marker-end="url(#tip)"/>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP + MARGIN:g}" '
        'font-family="sans-serif" font-size="12">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#8a94a3"/></marker></defs><rect width="100%" height="100%" fill="#f8fafc"/>'
    )
    return "\n".join([head, *arrows, *boxes, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE)
