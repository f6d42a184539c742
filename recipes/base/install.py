"""Copy a pretrained base into the package and write its card from the figures that the run measured.

python recipes/base/install.py BASE
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "src" / "seqtune" / "assets" / "base"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "pretraining.json",
)
HERE = Path(__file__).resolve().parent


def main(source: Path) -> None:
    """Install the model; the card's fixed text is `card.md`, its figures come from `pretraining.json`."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, TARGET / name)
    facts = json.loads((source / "pretraining.json").read_text())
    figures = facts | facts["outcome"] | facts["shape"]
    figures["corpus_rows"] = "\n".join(f"| `{name}` | {size:,} |" for name, size in facts["corpus"].items())
    text = (HERE / "card.md").read_text().format(**figures)
    (TARGET / "README.md").write_text(text, encoding="utf-8")
    print(f"{TARGET}: {sum(p.stat().st_size for p in TARGET.iterdir()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
