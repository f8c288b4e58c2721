"""MBPP+'s arguments as Python values: its file is JSON, which has no tuples, sets or complex.

Which tasks take what follows EvalPlus (evalplus/data/mbpp.py, commit 26d6d00).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Arguments = list[Any]

_ALL = frozenset(
    {
        *(2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630),
        *(726, 740, 744, 809),
    }
)
_MEMBERS_OF_ALL = frozenset((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780))
_MEMBERS_OF_FIRST = frozenset((75, 413, 444, 753))
_SECOND = frozenset((106, 750))
_FIRST = frozenset((250, 405, 446, 617, 720, 763, 808, 307))
_ALL_AND_MEMBERS = frozenset((259, 401, 445))
_EVERY_DEPTH = frozenset((580, 615, 791))


def restore_inputs(task_id: str, inputs: list[Arguments]) -> list[Arguments]:
    """The argument lists of one task. Raises TypeError or ValueError for what cannot be them."""
    restore = _rule(int(task_id.rpartition("/")[2]))
    return [restore(arguments) for arguments in inputs]


def _rule(number: int) -> Callable[[Arguments], Arguments]:
    if number in _ALL:
        return lambda a: [tuple(x) for x in a]
    if number in _MEMBERS_OF_ALL:
        return lambda a: [_members(x) for x in a]
    if number in _MEMBERS_OF_FIRST:
        return lambda a: [_members(a[0]), a[1]]
    if number in _SECOND:
        return lambda a: [a[0], tuple(a[1])]
    if number in _FIRST:
        return lambda a: [tuple(a[0]), *a[1:]]
    if number in _ALL_AND_MEMBERS:
        return lambda a: [tuple(_members(x)) for x in a]
    if number in _EVERY_DEPTH:
        return lambda a: [_tuples(x) for x in a]
    return _SINGLE.get(number, lambda a: a)


# An empty list stands for an empty dict in task 115.
_SINGLE: dict[int, Callable[[Arguments], Arguments]] = {
    115: lambda a: [[set(x) if isinstance(x, list) and x else {} for x in a[0]]],
    124: lambda a: [float(a[0]), complex(a[1])],
    252: lambda a: [complex(a[0])],
    278: lambda a: [tuple(tuple(x) if isinstance(x, list) else x for x in a[0])],
    722: lambda a: [{name: tuple(value) for name, value in a[0].items()}, *a[1:]],
}


def _members(values: list[Any]) -> list[Any]:
    return [tuple(value) for value in values]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value
