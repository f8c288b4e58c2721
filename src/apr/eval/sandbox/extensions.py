"""Library types that cross between candidate and judge as their contents (codec extensions).

Rebuilt on the other side as the same type, so that == there means what == means here.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from . import codec

_CONTENTS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    range: ("range", lambda value: (value.start, value.stop, value.step)),
    slice: ("slice", lambda value: (value.start, value.stop, value.step)),
    type({}.keys()): ("dict_keys", list),
    type({}.items()): ("dict_items", list),
    Counter: ("Counter", lambda value: list(value.items())),
    OrderedDict: ("OrderedDict", lambda value: list(value.items())),
    defaultdict: ("defaultdict", lambda value: list(value.items())),
    deque: ("deque", lambda value: (list(value), value.maxlen)),
    Decimal: ("Decimal", str),
    Fraction: ("Fraction", lambda value: (value.numerator, value.denominator)),
}
_DTYPE = re.compile(r"[<>|=]?[biufcSU]\d+")


def write(encoder: codec.Encoder, value: Any) -> bool:
    """Write a value of one of these types; False if it is none of them."""
    if type(value) in _CONTENTS:
        name, contents = _CONTENTS[type(value)]
        encoder.extension(name, contents(value))
        return True
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.generic, numpy.ndarray)):
        return False
    if value.dtype.kind not in "biufcSU":  # objects, records, dates
        return False
    scalar = isinstance(value, numpy.generic)
    encoder.extension("numpy", (value.dtype.str, tuple(value.shape), value.tobytes(), scalar))
    return True


def build(name: str, contents: Any) -> Any:
    """The value again; any exception means that the contents were not what `write` writes."""
    return _BUILDERS[name](contents)


def _numpy(parts: Any) -> Any:
    dtype, shape, raw, scalar = parts
    if not _DTYPE.fullmatch(dtype):
        raise ValueError(f"dtype {dtype!r}")
    numpy = importlib.import_module("numpy")
    array = numpy.frombuffer(raw, dtype=dtype).reshape(shape).copy()
    return array[()] if scalar else array


_BUILDERS: dict[str, Callable[[Any], Any]] = {
    "range": lambda parts: range(*parts),
    "slice": lambda parts: slice(*parts),
    "dict_keys": lambda keys: dict.fromkeys(keys).keys(),
    "dict_items": lambda items: dict(items).items(),
    "Counter": lambda items: Counter(dict(items)),
    "OrderedDict": OrderedDict,
    "defaultdict": lambda items: defaultdict(None, items),
    "deque": lambda parts: deque(parts[0], parts[1]),
    "Decimal": Decimal,
    "Fraction": lambda parts: Fraction(*parts),
    "numpy": _numpy,
}
