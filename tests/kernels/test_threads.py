"""The number of threads, and the team of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from types import FrameType
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.kernels.cpu import threads
from apr.kernels.cpu.threads import Team, default_threads

PATIENCE = 20.0  # seconds after which a test of what must not hang gives up


@pytest.mark.parametrize("asked", ["abc", "0", "-2", "1.5", "²", "99999", "7" * 5000, " "])
def test_a_count_of_threads_that_cannot_be(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("APR_NUM_THREADS", asked)
    with pytest.raises(UsageError, match=r"^APR_NUM_THREADS=.* is no count of threads \(a number"):
        default_threads()


def test_the_count_is_what_is_asked_for_or_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("APR_NUM_THREADS", "")
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


def meet(tid: int, count: int, barrier: threading.Barrier, seen: list[tuple[int, int]]) -> None:
    """As a compiled step does: nobody ends before all have come."""
    barrier.wait(PATIENCE)
    seen.append((tid, count))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_member_is_called_once(count: int) -> None:
    team = Team(count)
    for _ in range(50):
        seen: list[tuple[int, int]] = []
        team.run(meet, threading.Barrier(count), seen)
        assert sorted(seen) == [(tid, count) for tid in range(count)]
    team.close()
    team.run(meet, threading.Barrier(1), seen)
    assert seen[-1] == (0, 1)


def test_an_error_of_a_member_is_raised_and_the_team_goes_on() -> None:
    def fails(tid: int, count: int) -> None:
        if tid == 1:
            raise KeyError("one of them")

    team = Team(3)
    with pytest.raises(KeyError, match="one of them"):
        team.run(fails)
    seen: list[tuple[int, int]] = []
    team.run(meet, threading.Barrier(3), seen)
    assert len(seen) == 3
    team.close()


def test_an_interrupt_between_any_two_instructions_leaves_nobody_waiting() -> None:
    """KeyboardInterrupt at the first, second, ... instruction of `run`, as Ctrl-C may raise it."""
    team = Team(2)
    interrupted = 0
    while True:
        left = interrupted

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != threads.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
            return trace

        barrier, seen = threading.Barrier(2), list[tuple[int, int]]()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            team.run(meet, barrier, seen)
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(before)
        # The order was given to nobody or to both, and the team does the next one.
        again: list[tuple[int, int]] = []
        team.run(meet, threading.Barrier(2), again)
        assert sorted(again) == [(0, 2), (1, 2)]
        assert not barrier.broken and len(seen) in (0, 2)
    assert interrupted > 20
    team.close()


def test_ctrl_c_while_waiting_is_immediate_and_what_runs_keeps_what_it_needs() -> None:
    class Buffers:
        pass

    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    started = threading.Barrier(3)

    def slow(tid: int, count: int) -> None:
        begun.set()
        started.wait(PATIENCE)
        assert go_on.wait(PATIENCE)
        if tid == 0:
            ended.set()

    def interrupt() -> None:
        started.wait(PATIENCE)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    team, buffers = Team(2), Buffers()
    life = weakref.ref(buffers)
    threading.Thread(target=interrupt, daemon=True).start()
    while not begun.is_set():  # else it was an interrupt from elsewhere, before the order was given
        with pytest.raises(KeyboardInterrupt):
            team.run(slow, keep=buffers)
    del buffers
    assert life() is not None  # both still run
    go_on.set()
    seen: list[tuple[int, int]] = []
    team.run(meet, threading.Barrier(2), seen)
    assert ended.is_set() and len(seen) == 2
    team.close()
    # A thread lets go of what it was given just after it has answered.
    patience = time.monotonic() + PATIENCE
    while life() is not None and time.monotonic() < patience:
        time.sleep(0.001)
    assert life() is None
