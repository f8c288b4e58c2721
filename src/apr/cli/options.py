"""What several verbs share: reading option values, showing results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

from apr.errors import UsageError

if TYPE_CHECKING:
    from apr.eval.result import Result
    from apr.eval.sandbox import Level

T = TypeVar("T")


def one_of(flag: str, value: str, choices: Mapping[str, T]) -> T:
    """The choice a flag names. Raises UsageError listing them."""
    if value not in choices:
        raise UsageError(f"--{flag} {value} is unknown", f"one of {', '.join(choices)}")
    return choices[value]


def parse_ks(text: str) -> tuple[int, ...] | None:
    """ "1,10" as numbers; None for an empty text."""
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--k {text} is not a list of numbers", "e.g. --k 1,10") from None


def sandbox_choice(value: str) -> Literal["auto"] | Level:
    """The isolation level --sandbox-level names."""
    from apr.eval.sandbox import LEVELS

    return one_of("sandbox-level", value, {"auto": "auto", **{level: level for level in LEVELS}})


def print_result(result: Result, per_task: bool) -> None:
    """The tables of a result on standard output."""
    from rich.console import Console

    from apr.eval.result import summary_table, task_table

    console = Console()
    if per_task:
        console.print(task_table(result))
    console.print(summary_table(result))
