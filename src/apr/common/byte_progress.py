"""Progress of downloads on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.progress

PATIENCE = 2.0  # seconds before anything is shown: short work stays silent
INTERVAL = 5.0  # seconds between plain lines


def note(message: str, enabled: bool = True) -> None:
    """One plain line on stderr."""
    if enabled:
        print(f"apr: {message}", file=sys.stderr, flush=True)


class ByteProgress:
    """Counts bytes of one transfer; shows them once it has lasted `PATIENCE` seconds.

    total: bytes, None when unknown.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        enabled: bool = True,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._enabled = enabled
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._next = clock() + PATIENCE
        self._bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        self.done += count
        if not self._enabled or self._clock() < self._next:
            return
        if self._stream.isatty():
            self._update_bar()
        else:
            self._next = self._clock() + INTERVAL
            print(f"apr: {self.label}: {self._state()}", file=self._stream, flush=True)

    def _state(self) -> str:
        if not self.total:
            return f"{self.done / 1e6:.1f} MB"
        percent = 100 * self.done / self.total
        return f"{percent:.0f} % of {self.total / 1e6:.1f} MB"

    def _update_bar(self) -> None:
        import rich.console
        import rich.progress

        if self._bar is None:
            bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.DownloadColumn(),
                rich.progress.TransferSpeedColumn(),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(file=self._stream),
                transient=True,
            )
            bar.start()
            self._bar = (bar, bar.add_task(self.label, total=self.total))
        self._bar[0].update(self._bar[1], completed=self.done)
