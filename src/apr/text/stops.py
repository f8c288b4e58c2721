"""Stop strings on a stream of text: the output ends before the first of them, never inside one."""

from __future__ import annotations

from collections.abc import Sequence

from apr.common.errors import UsageError


class StopMatcher:
    """Cuts streamed text at the earliest start of any stop string.

    However the text is cut into pieces, what `push` and `flush` return, joined, equals
    `text[:i]` with i the smallest `text.find(stop)` over all stops (the whole text where none
    occurs). Text that may still become a stop string is held back until that is decided; the
    same holds for a found stop when a longer one that began earlier may still be completed.

    stops: the stop strings; none is allowed, an empty string is not.
    matched: the stop string that was found, None so far. Generation should end once it is set.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise UsageError("stop strings: got one string", "pass a list of strings")
        if any(not stop for stop in stops):
            raise UsageError("stop strings: one of them is empty", "remove it")
        self.stops = tuple(stops)
        self.matched: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece of text; return what can be shown by now."""
        if self.matched is not None or not text:
            return ""
        self._held += text
        found = self._earliest_match()
        pending = self._earliest_partial()
        if found is not None and found[0] <= pending:
            return self._cut(*found)
        emit, self._held = self._held[:pending], self._held[pending:]
        return emit

    def flush(self) -> str:
        """The text has ended: return what was held back, cut at a stop that was found in it."""
        if self.matched is not None:
            return ""
        found = self._earliest_match()
        if found is not None:
            return self._cut(*found)
        emit, self._held = self._held, ""
        return emit

    def _cut(self, start: int, stop: str) -> str:
        emit, self._held, self.matched = self._held[:start], "", stop
        return emit

    def _earliest_match(self) -> tuple[int, str] | None:
        matches = [(self._held.find(stop), stop) for stop in self.stops]
        return min((m for m in matches if m[0] >= 0), key=lambda m: m[0], default=None)

    def _earliest_partial(self) -> int:
        """Where the longest end of the held text that begins a stop string starts."""
        held = self._held
        for start in range(max(0, len(held) - self._longest() + 1), len(held)):
            tail = held[start:]
            if any(len(tail) < len(stop) and stop.startswith(tail) for stop in self.stops):
                return start
        return len(held)

    def _longest(self) -> int:
        return max(map(len, self.stops), default=0)
