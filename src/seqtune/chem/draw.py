"""A grid of molecules with the predicted names below them, in the colour of the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from seqtune import folders
from seqtune.chem import molecules
from seqtune.errors import ConfigError
from seqtune.records import Prediction

WIDTH, HEIGHT, COLUMNS = 320, 300, 4  # pixels a panel, panels a row
MAX_PANELS = 200
LINE, LINES = 44, 5  # characters a line, lines a legend
GREEN, AMBER, RED, GREY = (0.0, 0.45, 0.2), (0.75, 0.45, 0.0), (0.75, 0.1, 0.1), (0.35, 0.35, 0.35)
COLOURS = {
    "verified": GREEN, "skeleton_only": AMBER, "unverified": AMBER, "mismatch": RED, "unparsed": RED, "abstained": RED,
    "invalid": RED,
}  # fmt: skip


def grid(predictions: Sequence[Prediction], path: Path) -> None:
    """Draw inputs and answers: green verified, amber only the skeleton, red wrong or unreadable, grey not checked.

    Args:
        predictions: whichever of input and answer reads as SMILES is drawn, the other one is the text.
        path: `.png` or `.svg`; the first 200 predictions are drawn.

    Raises:
        ConfigError: another file ending.
    """
    makers = {".svg": rdMolDraw2D.MolDraw2DSVG, ".png": rdMolDraw2D.MolDraw2DCairo}
    if path.suffix not in makers:
        raise ConfigError(f"--grid {str(path)!r}: the file must end in .png or .svg")
    shown = predictions[:MAX_PANELS]
    columns = min(COLUMNS, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    drawer = makers[path.suffix](WIDTH * columns, HEIGHT * rows, WIDTH, HEIGHT)
    options = drawer.drawOptions()
    options.legendFontSize, options.legendFraction, options.fixedFontSize = 15, 0.32, -1
    options.fixedBondLength = 32
    for index, prediction in enumerate(shown):
        mol, text, status = _panel(prediction)
        drawer.SetOffset(WIDTH * (index % columns), HEIGHT * (index // columns))
        options.setLegendColour(COLOURS.get(status, GREY))
        drawer.DrawMolecule(mol, legend=_legend(text, status))
    drawer.FinishDrawing()
    content = drawer.GetDrawingText()
    with folders.writing(path) as hidden:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)


def picture(text: str) -> str:
    """A molecule as SVG, "" for a text that is none."""
    mol = molecules.parse(text)
    if mol is None:
        return ""
    drawer = rdMolDraw2D.MolDraw2DSVG(200, 140)
    drawer.drawOptions().fixedBondLength = 24
    drawer.DrawMolecule(mol)
    drawer.FinishDrawing()
    svg = drawer.GetDrawingText()
    return svg[svg.index("<svg") :]


def _panel(prediction: Prediction) -> tuple[Chem.Mol, str, str]:
    """The molecule to draw, the text below it and the verdict."""
    status = prediction.details.get("verdict") or prediction.details.get("structure") or prediction.status
    mol = molecules.parse(prediction.input)
    text = prediction.prediction
    if mol is None and prediction.prediction:
        mol, text = molecules.parse(prediction.prediction), prediction.input
    if mol is None:
        return _question_mark(), prediction.input, status
    return mol, text or "(no answer)", status


def _question_mark() -> Chem.Mol:
    """What stands where no molecule can be drawn."""
    mol = Chem.MolFromSmiles("*")
    mol.GetAtomWithIdx(0).SetProp("_displayLabel", "?")
    return mol


def _legend(text: str, status: str) -> str:
    lines = textwrap.wrap(text, LINE, break_on_hyphens=True) or [""]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1][: LINE - 1] + "…"]
    return "\n".join([*lines, f"[{status.replace('_', ' ')}]"])
