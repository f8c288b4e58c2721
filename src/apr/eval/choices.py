"""What may be chosen of a benchmark's tasks and prompts. Plain data; nothing else is imported."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from apr.common.errors import UsageError
from apr.common.settings import option

Mode = Literal["base", "chat", "psm", "spm", "prefix"]
Newline = Literal["strip", "keep", "add"]
TASKS = "Benchmark"  # the heading of their flags


def _day(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%d") if text else None
    except ValueError:
        raise UsageError("is not a day", "as 2024-02-17") from None


@dataclass(frozen=True)
class Dates:
    """Which of the problems with a contest's date count, both ends included. cutoff: last day of
    the model's training data.
    """

    first: datetime | None = option(
        None,
        "Use only problems of contests on or after this day (YYYY-MM-DD).",
        flag="from",
        parse=_day,
        panel=TASKS,
    )
    last: datetime | None = option(
        None,
        "Use only problems of contests on or before this day.",
        flag="to",
        parse=_day,
        panel=TASKS,
    )
    cutoff: datetime | None = option(
        None,
        "Last day of the model's training data: the score of the newer problems is shown apart.",
        parse=_day,
        panel=TASKS,
    )

    def __post_init__(self) -> None:
        if self.first and self.last and self.first > self.last:
            raise UsageError(f"`first` {self.first:%Y-%m-%d} is after `last` {self.last:%Y-%m-%d}")

    def holds(self, date: datetime) -> bool:
        return (self.first is None or self.first <= date) and (
            self.last is None or date <= self.last
        )

    def __str__(self) -> str:
        ends = [f"{end:%Y-%m-%d}" if end else "" for end in (self.first, self.last)]
        return f"{ends[0] or 'the beginning'} to {ends[1] or 'the end'}"
