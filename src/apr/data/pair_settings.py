"""What `apr data pairs` is asked to do: its flags. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apr.common.errors import UsageError
from apr.common.settings import check, option

# How a sample may have failed, worst last.
FAILURES = ("assertion", "exception", "timeout", "no-code", "resources")


@dataclass(frozen=True)
class PairSettings:
    """selection: "all" pairs of a passing and a failing sample; "balanced": each sample of the
    smaller side in equally many, none more often than once more than another.
    """

    selection: Literal["balanced", "all"] = option(
        "balanced",
        "balanced: of each task as many pairs as it has passing or failing samples, whichever is"
        " less, each sample once; all: every pair.",
    )
    per_task: int | None = option(None, "Most pairs of one task.", least=1)
    failures: tuple[str, ...] = option(
        FAILURES,
        "Failures that count, of: assertion (a wrong result), exception, timeout, no-code (nothing"
        " that parses), resources (memory, output, a crash).",
    )
    near: float = option(
        0.97,
        "Pairs whose answers are more alike than this, from 0 to 1, are left out.",
        above=0,
        most=1,
    )
    minimal_edit: bool = option(
        False, "Prefer pairs that differ in few words, so that the fault is what differs."
    )
    suspect: bool = option(False, "Also samples that were marked suspect.")
    seed: int = option(0, "The same seed draws the same pairs.")

    def __post_init__(self) -> None:
        check(self)
        unknown = next((kind for kind in self.failures if kind not in FAILURES), None)
        if unknown is not None or not self.failures:
            raise UsageError(f"`failures` {unknown or ''} is unknown", f"of {', '.join(FAILURES)}")
