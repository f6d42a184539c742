"""A tutorial as a notebook: each Python block of the page is a cell, each block of commands a cell that runs them.

Run `python docs/notebooks.py docs/tutorials/dates.md > dates.ipynb`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def notebook(page: str) -> dict[str, Any]:
    r"""The notebook (nbformat 4.5) of a page.

    Args:
        page: Markdown. Blocks marked `python` and `sh` become code, everything else stays text.

    Example:
        `notebook("Two:\n```python\n1 + 1\n```\n")["cells"][1]["source"]` is "1 + 1".
    """
    cells: list[dict[str, Any]] = []
    end = 0
    for block in BLOCK.finditer(page):
        _text(cells, page[end : block.start()])
        code = block[2].rstrip("\n")
        # bash ends at the first command that fails, and the cell with it
        source = code if block[1] == "python" else f"%%bash\nset -e\n{code}"
        cells.append({"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": source})
        end = block.end()
    _text(cells, page[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _text(cells: list[dict[str, Any]], text: str) -> None:
    if text.strip():
        cells.append({"cell_type": "markdown", "metadata": {}, "source": text.strip("\n")})


if __name__ == "__main__":
    json.dump(notebook(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.stdout, ensure_ascii=False, indent=1)
