"""When an answer of a program counts as the expected one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """holds(answer, expected, arguments): whether they are the same; may raise, which means they
    are not. by_bytes: whether an answer that equals the expected one needs no other look.
    """

    holds: Callable[[Any, Any, Callable[[], Any]], bool]
    by_bytes: bool = True


# MBPP's functions whose result EvalPlus compares as a set, or only for being there.
_AS_SETS = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
}
_NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}
_RTOL, _FLOAT_ATOL = 1e-7, 1e-6


def rule(entry_point: str, name: str, *settings: Any) -> Rule:
    """A rule by name: "equal", or "evalplus" with ("humaneval" or "mbpp", the task's atol)."""
    if name == "evalplus":
        return Rule(_evalplus(entry_point, *settings), by_bytes=entry_point != "find_zero")
    return Rule(lambda answer, expected, _: bool(answer == expected))


def _evalplus(
    entry_point: str, dataset: str, atol: float
) -> Callable[[Any, Any, Callable[[], Any]], bool]:
    """EvalPlus' rule (evalplus/eval/__init__.py, commit 26d6d00).

    A task's tolerance, once a float was expected, stays for its later cases as it does there.
    """

    def same(answer: Any, expected: Any, arguments: Callable[[], Any]) -> bool:
        nonlocal atol
        exact = answer == expected
        if dataset == "mbpp":
            exact = _mbpp(entry_point, answer, expected, exact, arguments, atol)
        elif entry_point == "find_zero":  # any root of the polynomial is right
            return abs(_polynomial(arguments()[0], answer)) <= atol
        if atol == 0 and _is_floats(expected):
            atol = _FLOAT_ATOL
        if exact:  # of an array: raises, as there
            return True
        if atol == 0 or type(answer) is not type(expected):
            return False
        if isinstance(expected, list | tuple) and len(answer) != len(expected):
            return False
        numpy = importlib.import_module("numpy")
        return bool(numpy.allclose(answer, expected, rtol=_RTOL, atol=atol))

    return same


def _mbpp(
    entry_point: str,
    answer: Any,
    expected: Any,
    exact: Any,
    arguments: Callable[[], Any],
    atol: float,
) -> Any:
    if entry_point == "are_equivalent":
        return True
    if entry_point == "sum_div":
        return exact or answer == 0
    if entry_point == "surface_Area":  # height: of the pyramid, not of its sides
        return exact or abs(answer - _surface(*arguments())) <= atol
    if entry_point == "digit_distance_nums":  # numbers of different lengths: zeros in front
        return exact or answer == _digit_distance(*arguments())
    if entry_point in _AS_SETS:
        return set(answer) == set(expected)
    if entry_point in _NOT_NONE and not isinstance(answer, bool):
        return expected == (answer is not None)
    return exact


def _surface(base: float, height: float) -> int:
    """Of a square pyramid."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digit_distance(first: int, second: int) -> int:
    a, b = str(first), str(second)
    length = max(len(a), len(b))
    pairs = zip(a.zfill(length), b.zfill(length), strict=True)
    return sum(abs(int(x) - int(y)) for x, y in pairs)


def _polynomial(coefficients: list[float], x: float) -> float:
    """coefficients[0] + coefficients[1] * x + ..."""
    return sum(c * math.pow(x, i) for i, c in enumerate(coefficients))


def _is_floats(value: Any) -> bool:
    """A float, a list or tuple of nothing else, or an array of doubles or singles."""
    if isinstance(value, float):
        return True
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    dtype = getattr(value, "dtype", None)
    return dtype is not None and dtype.kind == "f" and dtype.itemsize in (4, 8)
