"""Progress: silent when short, plain lines without a terminal, a bar on one."""

from __future__ import annotations

import io

import pytest

from apr.common.progress import ByteProgress, EvalProgress, counted, duration


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


def test_samples_are_counted_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 10**6, 20)).__next__
    with EvalProgress(4, 0, judged=1, clock=clock) as shown:
        shown.sample(4000)
        shown.verdict(True)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("apr: generated 1 of 4 (")
    assert first.endswith("tok/s), samples judged: 1 of 4; 1:00")
    assert "samples judged: 2 of 4, 1 of 1 passed; " in second and second.endswith(" left")


def test_what_is_judged_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    times = [0, 0, 10, 10, 10, 70, 70, 70, 70]
    with EvalProgress(90, what="reference solutions", clock=iter(times).__next__) as shown:
        shown.verdict(True)
        shown.verdict(False)
    first, second = capsys.readouterr().err.splitlines()
    assert (
        first == "apr: reference solutions judged: 1 of 90, 1 of 1 passed; 0:10, about 14:50 left"
    )
    assert (
        second == "apr: reference solutions judged: 2 of 90, 1 of 2 passed; 1:10, about 51:20 left"
    )
    assert duration(3 * 3600 + 61.4) == "3:01:01"


def test_counted_items_pass_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted(range(3), "rows")) == [0, 1, 2]
    assert list(counted(iter("ab"), "rows")) == ["a", "b"]
    assert capsys.readouterr().err == ""
