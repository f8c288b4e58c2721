"""More inputs like the ones a prompt shows: type-aware mutation (Liu et al. 2023, section 2.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

MAX_LENGTH = 200  # of a container or text: longer ones are not made longer
ROOM = 10  # what a number may always grow to


def more_inputs(shown: Sequence[tuple[Any, ...]], count: int, seed: int) -> list[tuple[Any, ...]]:
    """Up to so many argument tuples that differ from those shown and from each other.

    Each is made from one shown by changing values, never their types. Numbers grow little above
    the largest shown, and below 0 only where one shown is: right programs, too, may hang on the
    60th Fibonacci number or on the -5th. Deterministic by seed.
    """
    draw = random.Random(seed)
    pool = [tuple(arguments) for arguments in shown if arguments]
    seen = {repr(arguments) for arguments in shown}
    found: list[tuple[Any, ...]] = []
    numbers = list(_numbers(shown))
    most = max([ROOM, *(abs(number) + 2 for number in numbers)])
    least = -most if any(number < 0 for number in numbers) else 0
    for _ in range(20 * count):
        if len(found) == count or not pool:
            break
        arguments = list(draw.choice(pool))
        for place in draw.sample(range(len(arguments)), draw.randint(1, len(arguments))):
            arguments[place] = _changed(arguments[place], draw, _values(pool))
        made = tuple(arguments)
        if repr(made) not in seen and all(least <= n <= most for n in _numbers(made)):
            seen.add(repr(made))
            found.append(made)
            pool.append(made)
    return found


_SEEDS: dict[str, Any] = {
    "int": 5,
    "float": 2.5,
    "str": "Hello world 12",
    "bool": True,
    "list": [3, 1, 2],
    "dict": {"a": 1, "b": 2},
    "tuple": (1, 2),
    "set": {1, 2},
}


def inputs_of_type(annotations: Sequence[str]) -> tuple[Any, ...] | None:
    """Arguments for parameters with these annotations; None if one of them tells too little."""
    found = [_seed(annotation) for annotation in annotations]
    return None if not found or any(value is None for value in found) else tuple(found)


def _seed(annotation: str) -> Any:
    """A value for `int`, `List[str]`, `Optional[float]`, …"""
    outer, _, inner = annotation.strip().rpartition("typing.")[2].removesuffix("]").partition("[")
    if outer == "Optional":
        return _seed(inner)
    kind = outer.lower()
    member = _seed(inner) if inner and kind in ("list", "set") else None
    if member is None:
        return _SEEDS.get(kind)
    items = random.Random(0)
    changed = [_changed(member, items, []) for _ in range(3)]
    return [member, *changed] if kind == "list" else {member}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for member in value:
            yield from _numbers(member)
    elif type(value) in (int, float):
        yield value


def _values(pool: Sequence[Any]) -> list[Any]:
    """Simple values that occur in the pool, to be used elsewhere."""
    found: list[Any] = []
    todo: list[Any] = list(pool[:20])
    while todo and len(found) < 100:
        value = todo.pop()
        if isinstance(value, list | tuple | set | frozenset):
            todo += list(value)
        elif isinstance(value, dict):
            todo += [*value.keys(), *value.values()]
        else:
            found.append(value)
    return found


def _changed(value: Any, draw: random.Random, known: Sequence[Any]) -> Any:
    alike = [other for other in known if type(other) is type(value)]
    if alike and draw.random() < 0.2:
        return draw.choice(alike)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, 0, value * 2, draw.randint(-20, 100)))
    if isinstance(value, float):
        return draw.choice((value + 1, value - 0.5, -value, 0.0, value * 2, value / 3))
    if isinstance(value, complex):
        return value + draw.choice((1, -1, 1j, -1j))
    if isinstance(value, str):
        return _changed_text(value, draw, [t for t in alike if t])
    if isinstance(value, list | tuple):
        return type(value)(_changed_items(list(value), draw, known))
    if isinstance(value, set | frozenset):
        return type(value)(_changed_items(sorted(value, key=repr), draw, known))
    if isinstance(value, dict) and value:
        key = draw.choice(list(value))
        if draw.random() < 0.3:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _changed(value[key], draw, known)}
    return value


def _changed_text(value: str, draw: random.Random, alike: Sequence[str]) -> str:
    if not value:
        return draw.choice([*alike, "a"])
    at = draw.randrange(len(value))
    letter = draw.choice("".join(alike) or value)
    options = [
        value[:at] + value[at + 1 :],
        value[:at] + letter + value[at + 1 :],
        value[::-1],
        value.swapcase(),
        "",
    ]
    if len(value) < MAX_LENGTH:
        options += [value + value, value[:at] + letter + value[at:]]
    return draw.choice(options)


def _changed_items(items: list[Any], draw: random.Random, known: Sequence[Any]) -> list[Any]:
    if not items:
        return [draw.choice(known)] if known and draw.random() < 0.5 else items
    at = draw.randrange(len(items))
    kind = draw.choice(("drop", "repeat", "change", "change", "shuffle", "reverse"))
    if kind == "drop":
        return items[:at] + items[at + 1 :]
    if kind == "repeat" and len(items) < MAX_LENGTH:
        return [*items[: at + 1], items[at], *items[at + 1 :]]
    if kind == "shuffle":
        return draw.sample(items, len(items))
    if kind == "reverse":
        return items[::-1]
    return [*items[:at], _changed(items[at], draw, known), *items[at + 1 :]]
