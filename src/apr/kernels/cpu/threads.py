"""The threads that run a compiled step together. Python threads: the compiled code holds no GIL."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from itertools import repeat
from queue import SimpleQueue
from typing import Any, NamedTuple

from apr.common.errors import UsageError

MAX_THREADS = 1024


def default_threads() -> int:
    """Cores this process may use; APR_NUM_THREADS overrides. UsageError if that is no count."""
    asked = os.environ.get("APR_NUM_THREADS")
    if asked:
        count = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 0
        if not 1 <= count <= MAX_THREADS:
            raise UsageError(
                f"APR_NUM_THREADS={asked[:20]} is no count of threads",
                f"a number from 1 to {MAX_THREADS}, or unset for every core",
            )
        return count
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Team:
    """`threads` callers of one function, none of them the thread that asks for it.

    Python interrupts its main thread between any two instructions. Here that thread only waits:
    what it asks for reaches all callers or none, and they end it whether or not it still waits, so
    no caller is left waiting for another.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._orders: list[SimpleQueue[_Order | None]] = []
        if threads > 1:
            self._orders = [SimpleQueue() for _ in range(threads)]
        for tid, orders in enumerate(self._orders):
            threading.Thread(target=_serve, args=(tid, threads, orders), daemon=True).start()

    def run(self, function: Callable[..., Any], *arguments: Any, keep: Any = None) -> None:
        """Call function(tid, threads, *arguments) on every thread and wait for all.

        keep: what must live until all have returned, should the wait be interrupted.
        """
        if not self._orders:
            function(0, 1, *arguments)
            return
        order = _Order(function, arguments, SimpleQueue(), keep)
        self._give(order)
        errors = [order.answers.get() for _ in self._orders]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        self._give(None)
        self._orders = []
        self.threads = 1

    def _give(self, order: _Order | None) -> None:
        # A single call without Python code inside: no interrupt can part it.
        deque(map(SimpleQueue.put, self._orders, repeat(order)), maxlen=0)


class _Order(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    answers: SimpleQueue[BaseException | None]
    keep: Any


def _serve(tid: int, threads: int, orders: SimpleQueue[_Order | None]) -> None:
    while (order := orders.get()) is not None:
        answer = None
        try:
            order.function(tid, threads, *order.arguments)
        except BaseException as error:
            answer = error
        order.answers.put(answer)
        del order, answer  # not kept alive until the next one comes
