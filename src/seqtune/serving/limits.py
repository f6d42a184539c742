"""What a server takes on; anything beyond is refused before work is done on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server.

    Attributes:
        queue: inputs that wait to be decoded, those of all requests together.
        seconds: for one request, from its first byte to its last.
        inputs: of one request.
        characters: of one input, its other columns included.
        body: bytes of a request; those of a file are counted by `file`.
        file: bytes of a file that is to be answered.
        rows: of such a file.
        jobs: files that are being answered or whose answers are kept.
        job_minutes: how long answers are kept.
        connections: open at once.
    """

    queue: int = 1024
    seconds: float = 60.0
    inputs: int = 256
    characters: int = 10_000
    body: int = 2**20
    file: int = 2**25
    rows: int = 100_000
    jobs: int = 16
    job_minutes: float = 60.0
    connections: int = 1000
