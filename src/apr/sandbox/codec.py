"""Plain data as bytes: the only thing that crosses between a candidate and its judge.

None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set and frozenset, by
exact type. Reading builds nothing else, so bytes from a hostile process give plain data or
BadData, never a call into its code (which is why this is neither pickle nor marshal).

Mutable containers are numbered in the order they are met, so shared and cyclic ones stay
shared, and the same numbers let a callee send back what it changed in its arguments.

Layout: one tag byte, then
    N T F            None, True, False
    i                length u32, two's complement little endian
    d c              one or two IEEE doubles
    s b B            length u32, UTF-8 (lone surrogates allowed) or raw bytes
    l t S Z          list, tuple, set, frozenset: a sequence
    D                dict: sequence of keys, sequence of values
    a                number u32 of a container met before
    x                extension: name (length u32, UTF-8), then one value
A sequence is a count u32 and a kind byte: `*` tagged values, `q` int64s, `d` doubles,
`m` doubles, of which a byte each tells whether they stand for ints, `s` strings (u32 byte lengths,
then one blob).
"""

from __future__ import annotations

import builtins
import struct
from array import array
from collections.abc import Callable, Collection
from typing import Any

# For the functions below: what a program or a test patches is not theirs.
globals()["__builtins__"] = dict(vars(builtins))
MAX_DEPTH = 150  # well below the recursion limit that the judge runs under
_U32 = struct.Struct("<I")
_DOUBLE = struct.Struct("<d")
_MUTABLE = (list, dict, set, bytearray)
_INT64_MAX = (1 << 63) - 1
_EXACT_INT = 1 << 53


class NotPlain(Exception):
    """The value to be written is not plain data."""


class TooDeep(NotPlain):
    """Plain, but nested more than MAX_DEPTH deep."""


class BadData(Exception):
    """The bytes to be read are not what an Encoder writes."""


class Encoder:
    """Writes values into `out`.

    known: containers that already have numbers (the arguments of a call), in that order.
    extend: called as extend(encoder, value) for a value of any other type; it writes it by
    `extension` or raises NotPlain.
    """

    def __init__(
        self,
        known: Collection[Any] = (),
        extend: Callable[[Encoder, Any], None] | None = None,
    ) -> None:
        self.out = bytearray()
        self.containers: list[Any] = list(known)  # keeps them alive, so ids stay unique
        self._numbers = {id(value): i for i, value in enumerate(self.containers)}
        self._extend = extend
        self._depth = 0

    def value(self, value: Any) -> None:
        kind = type(value)
        out = self.out
        if kind in _MUTABLE:
            number = self._numbers.get(id(value))
            if number is not None:
                out += b"a" + _U32.pack(number)
                return
            self._numbers[id(value)] = len(self.containers)
            self.containers.append(value)
            out += _MUTABLE_TAGS[kind]
            self.contents(value)
        elif value is None or kind is bool:
            out += b"N" if value is None else b"T" if value else b"F"
        elif kind is int:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            out += b"i" + _U32.pack(len(raw)) + raw
        elif kind is float:
            out += b"d" + _DOUBLE.pack(value)
        elif kind is str:
            self._blob(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind is tuple or kind is frozenset:
            out += b"t" if kind is tuple else b"Z"
            self._sequence(value)
        elif kind is bytes:
            self._blob(b"b", value)
        elif kind is complex:
            out += b"c" + _DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag)
        elif self._extend is not None:
            self._extend(self, value)
        else:
            raise NotPlain(kind.__name__)

    def contents(self, container: Any) -> None:
        """Write what a mutable container holds, without its tag."""
        if type(container) is dict:
            self._sequence(container.keys())
            self._sequence(container.values())
        elif type(container) is bytearray:
            self.out += _U32.pack(len(container)) + container
        else:
            self._sequence(container)

    def extension(self, name: str, value: Any) -> None:
        self._blob(b"x", name.encode())
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooDeep("nesting")
        self.value(value)
        self._depth -= 1

    def _blob(self, tag: bytes, raw: bytes) -> None:
        self.out += tag + _U32.pack(len(raw)) + raw

    def _sequence(self, values: Collection[Any]) -> None:
        out = self.out
        out += _U32.pack(len(values))
        kinds = set(map(type, values)) if len(values) > 8 else ()
        if kinds == {int} and min(values) >= -_INT64_MAX and max(values) <= _INT64_MAX:
            out += b"q" + array("q", values).tobytes()
        elif kinds == {float}:
            out += b"d" + array("d", values).tobytes()
        elif kinds == {int, float} and _exact_as_doubles(values):
            out += b"m" + array("d", values).tobytes() + bytes([type(v) is int for v in values])
        elif kinds == {str}:
            blobs = [value.encode("utf-8", "surrogatepass") for value in values]
            out += b"s" + array("I", map(len, blobs)).tobytes() + b"".join(blobs)
        elif kinds == {bytes}:
            out += b"b" + array("I", map(len, values)).tobytes() + b"".join(values)
        else:
            out += b"*"
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise TooDeep("nesting")
            for value in values:
                self.value(value)
            self._depth -= 1


_MUTABLE_TAGS = {list: b"l", dict: b"D", set: b"S", bytearray: b"B"}


class Decoder:
    """Reads what an Encoder wrote; raises BadData for anything else.

    known: as in Encoder. extend: called as extend(name, value) for an extension.
    """

    def __init__(
        self,
        data: bytes,
        known: Collection[Any] = (),
        extend: Callable[[str, Any], Any] | None = None,
    ) -> None:
        self.containers: list[Any] = list(known)
        self._data = memoryview(data)
        self._at = 0
        self._extend = extend
        self._depth = 0

    def value(self) -> Any:
        tag = bytes(self._take(1))
        if tag == b"i":
            return int.from_bytes(self._take(self._u32()), "little", signed=True)
        if tag == b"s":
            return self._text(self._take(self._u32()))
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"d":
            return _DOUBLE.unpack(self._take(8))[0]
        if tag in _EMPTY:
            container = _EMPTY[tag]()
            self.containers.append(container)
            self.refill(container)
            return container
        if tag == b"t":
            return tuple(self._sequence())
        if tag == b"Z":
            return self._hashed(frozenset, self._sequence())
        if tag == b"b":
            return bytes(self._take(self._u32()))
        if tag == b"a":
            number = self._u32()
            if number >= len(self.containers):
                raise BadData("reference to a container not met yet")
            return self.containers[number]
        if tag == b"c":
            return complex(_DOUBLE.unpack(self._take(8))[0], _DOUBLE.unpack(self._take(8))[0])
        if tag == b"x" and self._extend is not None:
            name = self._text(self._take(self._u32()))
            self._deeper()
            inner = self.value()
            self._depth -= 1
            return self._extend(name, inner)
        raise BadData(f"tag {tag!r}")

    def refill(self, container: Any) -> None:
        """Replace what a mutable container holds by what comes next."""
        if type(container) is list:
            container[:] = self._sequence()
        elif type(container) is dict:
            keys, values = self._sequence(), self._sequence()
            if len(keys) != len(values):
                raise BadData("keys and values differ in number")
            container.clear()
            self._hashed(container.update, zip(keys, values, strict=True))
        elif type(container) is set:
            members = self._sequence()
            container.clear()
            self._hashed(container.update, members)
        else:
            container[:] = self._take(self._u32())

    def end(self) -> None:
        if self._at != len(self._data):
            raise BadData("bytes left over")

    def byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> memoryview:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise BadData("cut short")
        return self._data[start : self._at]

    def _u32(self) -> int:
        return _U32.unpack(self._take(4))[0]

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise BadData("nested too deeply")

    @staticmethod
    def _text(raw: memoryview) -> str:
        try:
            return str(raw, "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise BadData(str(error)) from None

    @staticmethod
    def _hashed(build: Callable[[Any], Any], values: Any) -> Any:
        try:
            return build(values)
        except TypeError as error:  # a list among the keys
            raise BadData(str(error)) from None

    def _sequence(self) -> list[Any]:
        count = self._u32()
        kind = bytes(self._take(1))
        if kind in (b"q", b"d"):
            numbers = array(kind.decode())
            numbers.frombytes(self._take(8 * count))
            return numbers.tolist()
        if kind == b"m":
            doubles = array("d")
            doubles.frombytes(self._take(8 * count))
            try:
                whole = self._take(count)
                return [int(v) if w else v for v, w in zip(doubles, whole, strict=True)]
            except (ValueError, OverflowError) as error:  # int(nan), int(inf)
                raise BadData(str(error)) from None
        if kind in (b"s", b"b"):
            lengths = array("I")
            lengths.frombytes(self._take(4 * count))
            read: Callable[[memoryview], Any] = self._text if kind == b"s" else bytes
            return [read(self._take(length)) for length in lengths]
        if kind != b"*":
            raise BadData(f"sequence of kind {kind!r}")
        self._deeper()
        values = [self.value() for _ in range(count)]
        self._depth -= 1
        return values


def _exact_as_doubles(values: Collection[Any]) -> bool:
    """Whether the ints among ints and floats are small enough to be doubles without rounding."""
    ints = [value for value in values if type(value) is int]
    return min(ints) >= -_EXACT_INT and max(ints) <= _EXACT_INT


_CONSTANTS: dict[bytes, Any] = {b"N": None, b"T": True, b"F": False}
_EMPTY: dict[bytes, Callable[[], Any]] = {b"l": list, b"D": dict, b"S": set, b"B": bytearray}


def dumps(value: Any) -> bytes:
    """Bytes of one value of plain data; raises NotPlain."""
    encoder = Encoder()
    encoder.value(value)
    return bytes(encoder.out)


def loads(data: bytes) -> Any:
    """The value that `dumps` wrote; raises BadData."""
    decoder = Decoder(data)
    value = decoder.value()
    decoder.end()
    return value
