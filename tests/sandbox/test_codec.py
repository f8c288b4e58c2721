"""The codec: what goes in comes out, shared things stay shared, hostile bytes stay bytes."""

from __future__ import annotations

import marshal
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.sandbox import codec

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.sampled_from(["\ud800", "a\udfff"])  # lone surrogates
    | st.binary()
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.lists(inner).map(tuple) | st.frozensets(inner))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(HASHABLE, inner)
        | st.sets(HASHABLE)
        | st.binary().map(bytearray)
    ),
)


def written(value: Any) -> str:
    """A text that differs where type, value or bits differ; -0.0, NaN and 1 == True included."""
    if isinstance(value, (list, tuple)):
        inside = ",".join(map(written, value))
    elif isinstance(value, dict):
        inside = ",".join(map(written, value.items()))
    elif isinstance(value, (set, frozenset)):
        inside = ",".join(sorted(map(written, value)))  # in no order of their own
    elif isinstance(value, bytearray):
        inside = value.hex()
    else:
        inside = marshal.dumps(value, 2).hex()
    return f"{type(value).__name__}({inside})"


@settings(deadline=None)
@given(VALUES)
def test_values_come_back(value: Any) -> None:
    assert written(codec.loads(codec.dumps(value))) == written(value)


@pytest.mark.parametrize(
    "value",
    [
        list(range(100)),
        [2**63 - 1, -(2**63), 2**63] * 10,
        [-(2**63 - 1), 2**63 - 1] * 10,
        [0.0, -0.0, math.inf, math.nan] * 10,
        ["", "a", "\ud800", "é" * 500] * 10,
        [True, 1] * 10,
        tuple("abcdefghijkl"),
        set(range(1000)),
        dict.fromkeys("abcdefghijklm", 1.5),
        1 << 40_000,
        -(1 << 40_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_long_sequences_come_back(value: Any) -> None:
    assert written(codec.loads(codec.dumps(value))) == written(value)


def test_shared_and_cyclic_containers() -> None:
    shared: list[Any] = [1]
    value = [shared, {"again": shared}, (shared,)]
    value.append(value)
    copy = codec.loads(codec.dumps(value))
    assert copy[0] is copy[1]["again"] is copy[2][0]
    assert copy[3] is copy


def test_changes_travel_back_into_the_originals() -> None:
    inner, outer = [1, 2], {"k": {1}}
    arguments = (inner, [inner, outer], bytearray(b"ab"))
    there = codec.Encoder()
    there.value(arguments)
    request = codec.Decoder(bytes(there.out))
    a, (b, c), d = request.value()
    assert a is b
    a.append(3)
    c["k"].add(2)
    c["new"] = a
    d += b"c"
    back = codec.Encoder(known=request.containers)
    for container in request.containers:
        back.contents(container)
    back.value((a, [a]))
    reply = codec.Decoder(bytes(back.out), known=there.containers)
    for container in there.containers:
        reply.refill(container)
    result = reply.value()
    reply.end()
    assert inner == [1, 2, 3] and outer == {"k": {1, 2}, "new": [1, 2, 3]}
    assert outer["new"] is inner and result[0] is inner and result[1][0] is inner
    assert arguments[2] == b"abc"


class Quiet(int):
    pass


@pytest.mark.parametrize("value", [object(), len, Quiet(3), [Quiet(3)], range(3), {"a": {1: ...}}])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(codec.NotPlain):
        codec.dumps(value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_bounded_on_both_sides() -> None:
    deepest = nested(codec.MAX_DEPTH)
    assert codec.loads(codec.dumps(deepest)) == deepest
    with pytest.raises(codec.NotPlain):
        codec.dumps(nested(codec.MAX_DEPTH + 1))
    bomb = b"t\x01\x00\x00\x00*" * 100_000 + b"N"
    with pytest.raises(codec.BadData):
        codec.loads(bomb)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_plain_data_or_bad_data(data: bytes) -> None:
    try:
        value = codec.loads(data)
    except codec.BadData:
        return
    codec.dumps(value)  # plain, or this raises


@settings(deadline=None)
@given(VALUES, st.data())
def test_damaged_bytes_give_plain_data_or_bad_data(value: Any, data: st.DataObject) -> None:
    raw = bytearray(codec.dumps(value))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            copy = codec.loads(damaged)
        except codec.BadData:
            continue
        codec.dumps(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"l\xff\xff\xff\xff*",  # four thousand million elements in no bytes
        b"i\xff\xff\xff\xff",
        b"s\x02\x00\x00\x00\xff\xfe",  # not UTF-8
        b"a\x00\x00\x00\x00",  # a container that was never met
        b"S\x01\x00\x00\x00*l\x00\x00\x00\x00*",  # a list in a set
        b"D\x01\x00\x00\x00*N\x00\x00\x00\x00*",  # a key without its value
        b"x\x01\x00\x00\x00aN",  # an extension that nobody asked for
        b"NN",
        b"?",
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(codec.BadData):
        codec.loads(data)
