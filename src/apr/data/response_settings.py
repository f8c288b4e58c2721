"""What `apr data responses` is asked to do: its flags. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apr.common.settings import check, option


@dataclass(frozen=True)
class ResponseSettings:
    """keep: which answers. thoughts: what becomes of reasoning before the answer."""

    keep: Literal["passed", "all", "failed-too"] = option(
        "passed",
        "passed: answers whose program passes the task's tests; failed-too: those that failed as"
        " well; all: also those without a verdict.",
    )
    thoughts: Literal["keep", "drop"] = option(
        "keep",
        "keep: reasoning stands in the answer, in <think> tags, and is learned; drop: the answer"
        " alone.",
    )
    per_task: int | None = option(None, "Most answers of one task.", least=1)
    seed: int = option(0, "The same seed draws the same answers.")

    def __post_init__(self) -> None:
        check(self)
