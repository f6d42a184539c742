"""An answer that grows: what may be sent of it, so that nothing that was sent need be taken back."""

from __future__ import annotations

from collections.abc import Sequence

BROKEN = "\ufffd"  # what a character looks like of which not all bytes are written


class Cutter:
    """Cuts an answer before the first of some texts.

    Args:
        stops: the texts.

    Attributes:
        is_over: one of them has come.

    Example:
        >>> cutter = Cutter(["END"])
        >>> [cutter.grow(text) for text in ("ab", "abE", "abEN", "abEND of it")], cutter.is_over
        (['ab', '', '', ''], True)
    """

    def __init__(self, stops: Sequence[str]):
        self.stops, self.sent, self.is_over = stops, "", False

    def cut(self, text: str) -> str:
        """The text up to the first stop."""
        return text[: min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=len(text))]

    def grow(self, text: str, *, last: bool = False) -> str:
        """What can be sent now.

        Args:
            text: the whole answer so far; it begins with what it was before.
            last: it does not grow any more.
        """
        safe = self.cut(text)
        self.is_over = self.is_over or safe != text
        if not last and not self.is_over:
            safe = safe.rstrip(BROKEN)
            safe = safe[: len(safe) - max((_overlap(safe, stop) for stop in self.stops), default=0)]
        new = safe[len(self.sent) :] if safe.startswith(self.sent) else ""
        self.sent += new
        return new


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text could be the beginning of a stop."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
