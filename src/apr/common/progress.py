"""How far an evaluation is: one moving line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 2.0
INTERVAL = 15.0


class EvalProgress:
    """Counts samples generated, judged and passed.

    total: samples of the whole run. generated: those there are already; None where none is made.
    doing: the word for what is done where nothing is judged.
    """

    def __init__(
        self, total: int, generated: int | None = None, enabled: bool = True, doing: str = ""
    ) -> None:
        self.total, self.generated, self.judged, self.passed = total, generated, 0, 0
        self._enabled, self._doing = enabled, doing
        self._tokens = 0
        self._start = time.monotonic()
        self._next = self._start + PATIENCE
        self._status = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self._status = Status("", console=Console(stderr=True))
            self._status.start()

    def sample(self, tokens: int) -> None:
        self.generated = (self.generated or 0) + 1
        self._tokens += tokens
        self._show()

    def verdict(self, passed: bool) -> None:
        self.judged += 1
        self.passed += passed
        self._show()

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()

    def _show(self) -> None:
        now = time.monotonic()
        if not self._enabled or now < self._next:
            return
        text = f"judged {self.judged}, passed {self.passed}"
        if self._doing:
            text = f"{self._doing} {self.judged} of {self.total}"
        elif self.generated is None:
            text = f"judged {self.judged} of {self.total}, passed {self.passed}"
        elif self._tokens:
            rate = self._tokens / (now - self._start)
            text = f"generated {self.generated} of {self.total} ({rate:.0f} tok/s), {text}"
        if self._status is not None:
            self._status.update(text)
            self._next = now + 0.2
        else:
            print(f"apr: {text}", file=sys.stderr, flush=True)
            self._next = now + INTERVAL


def counted(items: Sequence[T], label: str, enabled: bool = True) -> Iterator[T]:
    """The items, and on a terminal, once they have taken `PATIENCE` seconds, how far they are."""
    if not (enabled and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.status import Status

    shown_from = time.monotonic() + PATIENCE
    with ExitStack() as stack:
        status: Status | None = None
        for number, item in enumerate(items, 1):
            if time.monotonic() >= shown_from:
                if status is None:
                    status = stack.enter_context(Status("", console=Console(stderr=True)))
                status.update(f"{label} {number} of {len(items)}")
            yield item
