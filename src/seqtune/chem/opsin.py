"""OPSIN, the rule-based reader of names, as one living process that answers line by line.

Source: Lowe et al. 2011, https://doi.org/10.1021/ci100384d; the jar comes with the package py2opsin.
"""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from seqtune.errors import MissingDependencyError, SeqtuneError

MAX_CHARACTERS = 2000  # longer texts are no names; they could keep the parser busy for minutes
MAX_KNOWN = 100_000  # names remembered
TIMEOUT = 60.0  # seconds for one name, a JVM start included
DASHES = str.maketrans(
    dict.fromkeys("‐‑‒–—―−﹣－", "-") | dict.fromkeys("’‘ʹ′‛", "'") | {"″": "''", "“": '"', "”": '"', "\u00a0": " "}
)


class JavaMissingError(SeqtuneError):
    """There is no Java runtime, so names cannot be read back."""


def plain(name: str) -> str:
    """A name with ASCII dashes, primes and blanks in place of typographic ones.

    Example:
        >>> plain("propan–2–ol")
        'propan-2-ol'
    """
    return " ".join(name.translate(DASHES).split())


def find() -> tuple[str, Path]:
    """The Java program and OPSIN's jar.

    Raises:
        JavaMissingError: there is no `java` on the path.
        MissingDependencyError: py2opsin is not installed.
    """
    package = importlib.util.find_spec("py2opsin")  # not imported: it starts a JVM to look for Java
    if package is None or package.origin is None:
        raise MissingDependencyError("py2opsin", "chem", "reading names back to structures")
    java = shutil.which("java")
    if java is None:
        raise JavaMissingError(
            "there is no Java on this machine, so names cannot be read back to structures (OPSIN); install any Java "
            "from 8 on, for instance: apt install default-jre-headless"
        )
    return java, next(Path(package.origin).parent.glob("opsin-cli-*.jar"))


def version() -> str:
    """OPSIN's version, out of the jar's name."""
    return find()[1].name.split("-")[2]


class Opsin:
    """A running OPSIN.

    Raises:
        JavaMissingError: there is no Java.
        MissingDependencyError: the jar is not installed.

    Example:
        living().read(["ethanol", "nonsense"])    # ["C(C)O", ""]
    """

    def __init__(self) -> None:
        java, jar = find()
        self.command = [java, "-Xss16m", "-Xmx512m", "-XX:+UseSerialGC", "-jar", str(jar), "-osmi"]
        self.process = self._start()
        self.known: dict[str, str] = {}  # hypotheses and scores ask for the same names several times

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8", errors="replace"
        )

    def close(self) -> None:
        """End the JVM."""
        self.process.kill()
        self.process.communicate()

    def read(self, names: Sequence[str]) -> list[str]:
        """The structure of each name as SMILES; "" where OPSIN cannot read it (or hangs on it).

        PubChem separates the parts of a salt by `;`, OPSIN by a blank; typographic dashes are made plain.
        """
        asked = [plain(name.replace(";", " ")) for name in names]
        asked = [name if len(name) <= MAX_CHARACTERS else "" for name in asked]
        different = [name for name in dict.fromkeys(asked) if name not in self.known]
        if len(self.known) + len(different) > MAX_KNOWN:
            self.known.clear()
            different = list(dict.fromkeys(asked))
        self.known.update(zip(different, self._read(different), strict=True))
        return [self.known[name] for name in asked]

    def _read(self, asked: Sequence[str]) -> list[str]:
        answers: list[str] = []
        while len(answers) < len(asked):
            answers += self._ask(asked[len(answers) :])
            if len(answers) < len(asked):  # the JVM hung on, or died of, the name that has no answer
                answers.append("")
                self.close()
                self.process = self._start()
        return answers

    def _ask(self, names: Sequence[str]) -> list[str]:
        """Answers up to the first name that gets none in time."""
        process = self.process
        assert process.stdout
        writer = threading.Thread(target=_write, args=(process, names), daemon=True)
        writer.start()
        answers: list[str] = []
        for _ in names:
            # a blocking read cannot be timed; killing the JVM ends it
            alarm = threading.Timer(TIMEOUT, process.kill)
            alarm.daemon = True
            alarm.start()
            line = process.stdout.readline()
            alarm.cancel()
            if not line:
                break
            answers.append(line.strip())
        return answers


@cache
def living() -> Opsin:
    """The OPSIN of this program; it lives until that ends.

    Raises:
        JavaMissingError: there is no Java.
        MissingDependencyError: the jar is not installed.
    """
    made = Opsin()
    atexit.register(made.close)
    return made


def _write(process: subprocess.Popen[str], names: Sequence[str]) -> None:
    assert process.stdin
    try:
        for name in names:
            process.stdin.write(name + "\n")
        process.stdin.flush()
    except (BrokenPipeError, ValueError):  # the reader of the answers sees the end and starts another JVM
        return
