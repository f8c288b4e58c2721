"""Framed, bounded messages over stream sockets. Frame: length (u32, little endian), payload."""

from __future__ import annotations

import builtins
import marshal
import os
import struct
from typing import Any

from . import codec

# For the functions below: what a program or a test patches is not theirs.
globals()["__builtins__"] = dict(vars(builtins))
_read = os.read
_write = os.write
_LENGTH = struct.Struct("<I")
CHUNK = 1 << 20
_MARSHAL = 4  # the format since Python 3.4: pool and workers may run different versions


class Closed(Exception):
    """The other end is gone."""


class TooLarge(Exception):
    """The other end sends more than it may."""


def send_frame(fd: int, payload: bytes | bytearray) -> None:
    """Write one frame; raises Closed when the reader is gone."""
    data = memoryview(_LENGTH.pack(len(payload)) + payload)
    try:
        while data:
            data = data[_write(fd, data) :]
    except (BrokenPipeError, ConnectionResetError):
        raise Closed from None


def receive_frame(fd: int, limit: int) -> bytes:
    """Read one frame of at most `limit` bytes; raises Closed or TooLarge."""
    (length,) = _LENGTH.unpack(_read_exactly(fd, _LENGTH.size))
    if length > limit:
        raise TooLarge(f"{length} bytes, at most {limit} are read")
    return _read_exactly(fd, length)


def _read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = _read(fd, min(count, CHUNK))
        except ConnectionResetError:
            raise Closed from None
        if not part:
            raise Closed
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def send_trusted(fd: int, value: Any) -> None:
    """Send plain data from apr's own processes to each other."""
    send_frame(fd, marshal.dumps(value, _MARSHAL))


def receive_trusted(fd: int, limit: int) -> Any:
    """Receive what send_trusted sent. Never from a process that a candidate's code ran in."""
    return marshal.loads(receive_frame(fd, limit))


def send(fd: int, value: Any) -> None:
    """Send a value of plain data (codec.py)."""
    send_frame(fd, codec.dumps(value))


def receive(fd: int, limit: int) -> Any:
    """Receive plain data; raises codec.BadData for anything else."""
    return codec.loads(receive_frame(fd, limit))
