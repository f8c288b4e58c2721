"""A moving count on a terminal's stderr, for work that takes more than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 2.0
INTERVAL = 0.2


def counted(things: Iterable[T], what: str) -> Iterator[T]:
    """The same things; on a terminal their number is shown while they pass."""
    due = time.monotonic() + PATIENCE
    shown = False
    for number, thing in enumerate(things, 1):
        yield thing
        if time.monotonic() >= due and sys.stderr.isatty():
            print(f"\rapr: {number} {what}\033[K", end="", file=sys.stderr, flush=True)
            due, shown = time.monotonic() + INTERVAL, True
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
