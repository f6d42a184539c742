"""Build the text that `builtin:base` is pretrained on, from Debian packages (see the card for licences).

    python recipes/base/corpus.py CORPUS_FOLDER

Needs `apt-get` and `dpkg-deb`. Each source becomes one text file, documents separated by blank lines:

- wordnet.txt   glosses and example sentences of WordNet 3.0 (package wordnet-base; Princeton WordNet licence)
- austen.txt    six novels by Jane Austen (package r-cran-janeaustenr; texts in the public domain)
- jargon.txt    the Jargon Lexicon 4.4.7 (package dict-jargon; public domain)
- devil.txt     The Devil's Dictionary by Ambrose Bierce (package dict-devil; public domain)
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

PACKAGES = ("wordnet-base", "r-cran-janeaustenr", "dict-jargon", "dict-devil")


def unpack(package: str, folder: Path) -> Path:
    """Download a Debian package and unpack it; nothing is installed."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
    archive = next(folder.glob(f"{package}_*.deb"))
    root = folder / package
    subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    return root


def wordnet(root: Path) -> list[str]:
    """`word, word: gloss` for every synonym set of the data files."""
    documents = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (root / f"usr/share/wordnet/data.{part}").read_text("latin-1").splitlines():
            if line.startswith("  "):  # the licence header
                continue
            entry, _, gloss = line.partition(" | ")
            fields = entry.split()
            words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
            words = [re.sub(r"\([a-z]+\)$", "", word) for word in words]
            documents.append(f"{', '.join(words)}: {gloss.strip()}")
    return documents


def austen(root: Path) -> list[str]:
    """Paragraphs of the novels, out of R's lazy-load database (zlib chunks of serialised strings)."""
    data = next(root.rglob("data/Rdata.rdb")).read_bytes()
    lines: list[str] = []
    position = 0
    while position < len(data):
        # a chunk: length of the plain data (4 bytes, big-endian), then a zlib stream
        inflate = zlib.decompressobj()
        plain = inflate.decompress(data[position + 4 :])
        position = len(data) - len(inflate.unused_data)
        # a string in R's serialisation: flags 0x00040009 (CHARSXP, ASCII) or ...08009 (UTF-8), length, bytes
        for match in re.finditer(rb"\x00[\x04\x00][\x00\x80]\x09", plain):
            start = match.end() + 4
            length = int.from_bytes(plain[match.end() : start], "big")
            if length < 200:
                lines.append(plain[start : start + length].decode("utf-8", "replace"))
    text = "\n".join(lines)
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def dictionary(root: Path) -> list[str]:
    """Entries of a dictd database: unindented headword lines start an entry."""
    text = gzip.decompress(next(root.rglob("*.dict.dz")).read_bytes()).decode("utf-8", "replace")
    return [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", text)]


def main(folder: Path) -> None:
    """Write the four text files and print their sizes."""
    readers = dict(zip(PACKAGES, (wordnet, austen, dictionary, dictionary), strict=True))
    names = dict(zip(PACKAGES, ("wordnet", "austen", "jargon", "devil"), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for package, reader in readers.items():
            documents = [d for d in reader(unpack(package, Path(scratch))) if len(d) >= 20]
            path = folder / f"{names[package]}.txt"
            path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
            print(f"{path.name}: {len(documents):,} documents, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
