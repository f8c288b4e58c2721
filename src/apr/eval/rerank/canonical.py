"""What a program gave, as a short text: equal for answers that a test would take as equal."""

from __future__ import annotations

import hashlib
import math
from typing import Any

_LONG = 80  # characters; what is longer is told by its checksum
_DIGITS = 12  # significant digits of a float, of which 9 after the point


def canonical(value: Any) -> str:
    """A text for a value: equal for values that are == (1, 1.0 and True; sets and dicts in any
    order), floats after rounding. A list is no tuple. Never raises, whatever a program returned.
    """
    return _Reader().text(value)


class _Reader:
    """One value. Containers met again are not read again: shared ones may nest exponentially."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def text(self, value: Any) -> str:
        known = self._known.get(id(value))
        if known is None:
            self._known[id(value)] = "<cycle>"
            known = _short(self._read(value))
            self._known[id(value)] = known
        return known

    def _read(self, value: Any) -> str:
        if isinstance(value, bool | int | float):
            return _number(value)
        if isinstance(value, str | bytes | bytearray):
            return repr(value)
        if isinstance(value, complex):
            parts = [_number(value.real), _number(value.imag)]
            return parts[0] if parts[1] == "0" else f"({parts[0]}+{parts[1]}j)"
        if isinstance(value, dict):
            pairs = [f"{self.text(key)}: {self.text(member)}" for key, member in value.items()]
            return "{" + ", ".join(sorted(pairs)) + ":}"
        if isinstance(value, set | frozenset | type({}.keys())):
            return "{" + ", ".join(sorted(map(self.text, value))) + "}"
        if isinstance(value, tuple):
            return "(" + ", ".join(map(self.text, value)) + ",)"
        if isinstance(value, list):
            return "[" + ", ".join(map(self.text, value)) + "]"
        return self._other(value)

    def _other(self, value: Any) -> str:
        """Of a library's type (sandbox/extensions.py)."""
        kind = type(value).__name__
        tolist = getattr(value, "tolist", None)
        if tolist is not None:
            plain = tolist()
            return f"array{self.text(plain)}" if isinstance(plain, list) else self._read(plain)
        if kind in ("Decimal", "Fraction"):
            try:
                return _number(float(value))
            except (ValueError, OverflowError):
                return f"{kind} {value!r:.{_LONG}}"
        if kind in ("deque", "dict_items"):
            return f"{kind}[" + ", ".join(map(self.text, value)) + "]"
        return repr(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return repr(int(value)) if value.bit_length() < 1000 else hex(value)
    if not math.isfinite(value):
        return repr(value)
    rounded = round(float(f"{value:.{_DIGITS}g}"), 9)
    return repr(int(rounded)) if rounded == int(rounded) else repr(rounded)


def _short(text: str) -> str:
    if len(text) <= _LONG:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:24]}…{digest[:24]}"
