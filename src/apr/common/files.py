"""Files and folders that appear whole or not at all: written beside their place, then renamed.

What is being written is called `.NAME.PURPOSE-xxxxxxxx` and lies in the target's own folder, so
that one rename commits it. Everything here raises OSError unless it says otherwise;
`disk_errors` turns that into one line for people. `read_yaml` reads what people write.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from io import FileIO
from pathlib import Path
from typing import IO, Any

import yaml

from apr.common.errors import AprError, UsageError

_SYNC_FILE_RANGE_WRITE = 2
_WORTH_A_CALL = 1 << 16
_LOCK = ".lock"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A hidden path to write to, which takes the name `path` when the block ends well.

    Folders above it are made. An error, also a kill, leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, "tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) of which nobody ever sees a part."""
    with new_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of a value as JSON, one level of indentation a space."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[IO[bytes]]:
    """`new_file`, opened, at a place that a person named. Raises UsageError, AprError."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a file")
    with disk_errors(path), new_file(path) as temporary, temporary.open("wb") as file:
        yield file


def replace_folder(source: Path, target: Path) -> None:
    """Rename a folder over another, keeping the old one until the new one stands."""
    if not target.exists() or not any(target.iterdir()):
        source.rename(target)
        return
    old = beside(target, "replaced")
    target.rename(old)
    try:
        source.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def beside(target: Path, purpose: str) -> Path:
    """A new hidden name in the target's folder, so that a rename suffices to commit."""
    return target.with_name(f".{target.name}.{purpose}-{secrets.token_hex(4)}")


def begin(target: Path, *, folder: bool) -> tuple[Path, FileIO]:
    """A new hidden file or folder beside the target, locked while its writer lives.

    Returns its path and, open, the file itself or the folder's lock (remove it with `unlock_folder`
    before the rename). What killed writers to the same target left is removed first: the kernel
    freed their locks.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in target.parent.iterdir():
        if path.name.startswith(f".{target.name}.partial-"):
            _remove_if_abandoned(path)
    # Locked before it gets the name that marks it as somebody's: nobody finds it free between.
    unlocked = beside(target, "new")
    if folder:
        unlocked.mkdir()
    try:
        file = FileIO(unlocked / _LOCK if folder else unlocked, "x+")
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        return unlocked.rename(beside(target, "partial")), file
    except OSError:
        remove(unlocked)
        raise


def unlock_folder(folder: Path) -> None:
    """Remove the lock's file from a folder that `begin` made."""
    (folder / _LOCK).unlink()


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; no error where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_if_abandoned(path: Path) -> None:
    lock = path / _LOCK if path.is_dir() else path
    if not lock.is_file():
        return
    with FileIO(lock, "r") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its writer is alive
        remove(path)


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


def read_yaml(path: Path) -> Any:
    """What a file holds. Raises UsageError naming it where it cannot be read or is no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if "expected a single document" in str(error):
            hint = "write each to a file of its own"
            raise UsageError(f"{path} holds several documents (parted by ---)", hint) from None
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
