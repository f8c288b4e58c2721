"""Library types that cross between candidate and judge as their contents (codec extensions).

Rebuilt on the other side as the same type, so that == there means what == means here.
"""

from __future__ import annotations

import hashlib
import importlib
import marshal
import re
import sys
from collections.abc import Callable
from typing import Any

from . import codec

# By name, so that nothing is imported that neither program nor test uses.
_CONTENTS: dict[str, Callable[[Any], Any]] = {
    "builtins.range": lambda value: (value.start, value.stop, value.step),
    "builtins.slice": lambda value: (value.start, value.stop, value.step),
    "builtins.dict_keys": list,
    "builtins.dict_items": list,
    "collections.Counter": lambda value: list(value.items()),
    "collections.OrderedDict": lambda value: list(value.items()),
    "collections.defaultdict": lambda value: list(value.items()),
    "collections.deque": lambda value: (list(value), value.maxlen),
    "decimal.Decimal": str,
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
}
_DTYPE = re.compile(r"[<>|=]?[biufcSU]\d+")


def write(encoder: codec.Encoder, value: Any) -> bool:
    """Write a value of one of these types; False if it is none of them."""
    kind = type(value)
    name = f"{getattr(kind, '__module__', None)}.{kind.__name__}"
    if name in _CONTENTS and kind is _library_type(name):
        encoder.extension(name, _CONTENTS[name](value))
        return True
    if kind is Opaque:
        encoder.extension("opaque", value.type_name)
        return True
    if kind is Digest:
        encoder.extension("digest", value.value)
        return True
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.generic, numpy.ndarray)):
        return False
    if value.dtype.kind not in "biufcSU":  # objects, records, dates
        return False
    scalar = isinstance(value, numpy.generic)
    encoder.extension("numpy", (value.dtype.str, tuple(value.shape), value.tobytes(), scalar))
    return True


class Opaque:
    """In place of an object that is no plain data; equal to nothing but itself."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name}>"


class Digest:
    """In place of a very long list or tuple: equal to that of an equal one of the same types."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Digest and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"<more than {LONG} elements>"


LONG = 2_000_000  # elements, those of its members included
_CHUNK = 100_000
_SIZED = (str, list, tuple)


def digest(value: Any) -> Digest | None:
    """Of a list or tuple of more than LONG elements, all of them plain; else None."""
    if type(value) not in (list, tuple):
        return None
    if len(value) + sum(len(member) for member in value if type(member) in _SIZED) <= LONG:
        return None
    found = hashlib.sha256(f"{type(value).__name__} {len(value)}".encode())
    try:
        for first in range(0, len(value), _CHUNK):
            # Version 2 writes equal values alike, whoever else refers to them.
            found.update(marshal.dumps(list(value[first : first + _CHUNK]), 2))
    except ValueError:
        return None
    return Digest(found.digest())


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


def _library_type(name: str) -> Any:
    if name in _UNNAMED:
        return _UNNAMED[name]
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


_UNNAMED: dict[str, Any] = {
    "builtins.dict_keys": type({}.keys()),
    "builtins.dict_items": type({}.items()),
}
_BUILDERS: dict[str, Callable[[Any], Any]] = {
    "builtins.range": lambda parts: range(*parts),
    "builtins.slice": lambda parts: slice(*parts),
    "builtins.dict_keys": lambda keys: dict.fromkeys(keys).keys(),
    "builtins.dict_items": lambda items: dict(items).items(),
    "collections.Counter": lambda items: _library_type("collections.Counter")(dict(items)),
    "collections.OrderedDict": _library_type("collections.OrderedDict"),
    "collections.defaultdict": lambda items: _library_type("collections.defaultdict")(None, items),
    "collections.deque": lambda parts: _library_type("collections.deque")(*parts),
    "decimal.Decimal": lambda text: _library_type("decimal.Decimal")(text),
    "fractions.Fraction": lambda parts: _library_type("fractions.Fraction")(*parts),
    "numpy": _numpy,
    "digest": lambda value: Digest(bytes(value)),
    "opaque": lambda type_name: Opaque(str(type_name)),
}
