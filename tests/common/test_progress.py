"""Progress: silent when short, plain lines without a terminal, a bar on one."""

from __future__ import annotations

import io

from apr.common.progress import ByteProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def transfer(stream: io.StringIO, enabled: bool = True, total: int | None = 100_000_000) -> str:
    clock = Clock()
    with ByteProgress("model.gguf", total, enabled, stream, clock) as progress:
        for _ in range(10):
            clock.now += 1
            progress.advance(10_000_000)
    return stream.getvalue()


def test_lines_without_a_terminal() -> None:
    assert transfer(io.StringIO()).splitlines() == [
        "apr: model.gguf: 20 % of 100.0 MB",
        "apr: model.gguf: 70 % of 100.0 MB",
    ]


def test_unknown_total() -> None:
    assert "apr: model.gguf: 20.0 MB" in transfer(io.StringIO(), total=None)


def test_bar_on_a_terminal() -> None:
    shown = transfer(Terminal())
    assert "model.gguf" in shown
    assert "\x1b[" in shown


def test_silent_when_short_or_switched_off() -> None:
    stream = io.StringIO()
    with ByteProgress("model.gguf", 10, True, stream, Clock()) as progress:
        progress.advance(10)
    assert stream.getvalue() == ""
    assert transfer(io.StringIO(), enabled=False) == ""
