"""What both writers share: hidden names beside the target, and refusals of the disk in one line."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import sys
from collections.abc import Iterator
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

from apr.common.errors import AprError

_SYNC_FILE_RANGE_WRITE = 2
_WORTH_A_CALL = 1 << 16


def beside(target: Path, purpose: str) -> Path:
    """A new hidden name in the target's folder, so that a rename suffices to commit."""
    return target.with_name(f".{target.name}.{purpose}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """An OSError inside becomes an AprError that names the target."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space or choose another disk" if full else ""
        reason = error.strerror or str(error)
        raise AprError(f"cannot write {target}: {reason}", hint) from error


def write_at(file: FileIO, content: Any, offset: int) -> None:
    """Write all of a buffer; one system call may take less (Linux: at most 2 GiB)."""
    left, position = memoryview(content), offset
    nbytes = left.nbytes
    while left:
        written = os.pwrite(file.fileno(), left, position)
        left, position = left[written:], position + written
    _start_writing(file.fileno(), offset, nbytes)


def _start_writing(descriptor: int, offset: int, nbytes: int) -> None:
    """Have Linux begin to write these bytes to disk, so that a later fsync waits less."""
    if sys.platform == "linux" and nbytes >= _WORTH_A_CALL:
        _libc().sync_file_range(
            ctypes.c_int(descriptor),
            ctypes.c_longlong(offset),
            ctypes.c_longlong(nbytes),
            ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
        )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def sync(path: Path) -> None:
    """Make a file or folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
