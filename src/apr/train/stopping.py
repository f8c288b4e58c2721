"""Signals that ask a run to end: it ends at the next place from which it can go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from apr.common.errors import AprError

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(AprError):
    """A run was asked to end and has saved where it is. Exit code: as of the signal."""

    def __init__(self, number: int, step: int, total: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} at step {step} of {total}, which is saved",
            "the same command goes on from there",
        )
        self.exit_code = 128 + number


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """A function that tells the number of the signal that came since, 0 for none.

    A second signal does what it always did. Outside of the main thread, where Python lets nobody
    listen to signals, and for signals that are ignored (nohup) nothing changes.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def listen(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])

    heard = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    for number in heard:
        signal.signal(number, listen)
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number in heard:
            signal.signal(number, before[number])
