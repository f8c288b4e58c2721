"""How far work is, on stderr: a bar or one moving line on a terminal, plain lines elsewhere.

Nothing is shown in the first `PATIENCE` seconds: short work stays silent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    import rich.progress

T = TypeVar("T")
PATIENCE = 2.0  # seconds before anything is shown
INTERVAL = 5.0  # seconds between plain lines
_MOVING = 0.2  # seconds between changes of what moves on a terminal


def note(message: str, enabled: bool = True) -> None:
    """One plain line on stderr."""
    if enabled:
        print(f"apr: {message}", file=sys.stderr, flush=True)


class Display:
    """The display of one piece of work, to be used in a `with` block.

    total: how much there is to do, None when unknown. interval: seconds between plain lines; None
    for no line at all where there is no terminal.
    """

    def __init__(
        self,
        total: int | None = None,
        enabled: bool = True,
        interval: float | None = INTERVAL,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._interval, self._clock = interval, clock
        self._stream = stream if stream is not None else sys.stderr
        self._moves = self._stream.isatty()
        self.enabled = enabled and (self._moves or interval is not None)
        self._next = clock() + PATIENCE
        self._bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take what moves from the terminal."""
        if self._bar is not None:
            self._bar[0].stop()

    def columns(self) -> list[rich.progress.ProgressColumn]:
        """What moves on a terminal, of rich's columns."""
        import rich.progress

        return [rich.progress.SpinnerColumn(), rich.progress.TextColumn("{task.description}")]

    def show(self, line: Callable[[], str], moving: Callable[[], str], done: int = 0) -> None:
        """Say how far the work is, unless that was said a moment ago.

        line, moving: the words of a plain line, and those of what moves. done: of the total.
        """
        if not self.enabled or self._clock() < self._next:
            return
        if self._moves:
            self._next = self._clock() + _MOVING
            self._move(moving(), done)
        elif self._interval is not None:
            self._next = self._clock() + self._interval
            self.say(line())

    def say(self, message: str) -> None:
        """A line that stays, whatever moves."""
        if self._bar is not None:
            self._bar[0].console.print(f"apr: {message}")
        else:
            print(f"apr: {message}", file=self._stream, flush=True)

    def _move(self, text: str, done: int) -> None:
        import rich.console
        import rich.progress

        if self._bar is None:
            console = rich.console.Console(file=self._stream)
            bar = rich.progress.Progress(*self.columns(), console=console, transient=True)
            bar.start()
            self._bar = (bar, bar.add_task(text, total=self.total))
        self._bar[0].update(self._bar[1], completed=done, description=text)


class ByteProgress(Display):
    """Counts the bytes of one transfer. total: bytes, None when unknown."""

    def __init__(
        self,
        label: str,
        total: int | None,
        enabled: bool = True,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(total, enabled, stream=stream, clock=clock)
        self.label, self.done = label, 0

    def columns(self) -> list[rich.progress.ProgressColumn]:
        import rich.progress as shown

        return [
            shown.TextColumn("{task.description}"),
            shown.BarColumn(),
            shown.DownloadColumn(),
            shown.TransferSpeedColumn(),
            shown.TimeRemainingColumn(),
        ]

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        self.done += count
        self.show(lambda: f"{self.label}: {self._state()}", lambda: self.label, self.done)

    def _state(self) -> str:
        if not self.total:
            return f"{self.done / 1e6:.1f} MB"
        percent = 100 * self.done / self.total
        return f"{percent:.0f} % of {self.total / 1e6:.1f} MB"


class EvalProgress(Display):
    """Counts samples generated, judged and passed, says how long that took and what is left.

    total: samples of the whole run. generated: those there are already; None where none is made.
    what: in words, what is judged. judged: before this began. doing: the word for what is done
    where nothing is judged.
    """

    def __init__(
        self,
        total: int,
        generated: int | None = None,
        enabled: bool = True,
        what: str = "samples",
        judged: int = 0,
        doing: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(total, enabled, interval=15.0, clock=clock)
        self.generated, self.judged, self.passed = generated, judged, 0
        self._what, self._doing, self._before = what, doing, judged
        self._tokens, self._start, self._all = 0, clock(), total

    def sample(self, tokens: int) -> None:
        """One more is generated."""
        self.generated = (self.generated or 0) + 1
        self._tokens += tokens
        self.show(self._text, self._text)

    def verdict(self, passed: bool) -> None:
        """One more is judged."""
        self.judged += 1
        self.passed += passed
        self.show(self._text, self._text)

    def _text(self) -> str:
        new = self.judged - self._before
        passed = f", {self.passed} of {new} passed" if new else ""
        text = f"{self._doing or f'{self._what} judged:'} {self.judged} of {self.total}"
        text += f"{'' if self._doing else passed}; {self._times()}"
        if self._tokens:
            rate = self._tokens / (self._clock() - self._start)
            text = f"generated {self.generated} of {self.total} ({rate:.0f} tok/s), {text}"
        return text

    def _times(self) -> str:
        """How long it took, and about how long the rest will."""
        taken, new = self._clock() - self._start, self.judged - self._before
        if not new:
            return duration(taken)
        left = taken / new * (self._all - self.judged)
        return f"{duration(taken)}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """As 0:07, 12:30 or 3:00:00."""
    hours, rest = divmod(round(seconds), 3600)
    minutes = f"{rest // 60:02d}" if hours else f"{rest // 60}"
    return f"{hours}:" * bool(hours) + f"{minutes}:{rest % 60:02d}"


def counted(
    items: Iterable[T], label: str, enabled: bool = True, interval: float | None = None
) -> Iterator[T]:
    """The items; on a terminal their number is shown while they pass.

    label: before the number ("perplexity, window"); "of how many" follows where that is known.
    interval: seconds between plain lines where there is no terminal; None: none.
    """
    of_all = f" of {len(items)}" if isinstance(items, Sized) else ""
    with Display(enabled=enabled, interval=interval) as progress:
        for number, item in enumerate(items, 1):
            text = f"{label} {number}{of_all}"
            progress.show(text.__str__, text.__str__)
            yield item
