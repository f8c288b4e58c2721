"""SHA-256 of files, remembered: a model of many gigabytes is read once, not at every use.

<cache>/checksums/<key>: the sum of a file, under a key of its path, size, inode and times.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

from apr.common.errors import AprError
from apr.common.files import write_whole
from apr.common.record import FileRecord
from apr.hub.cache import cache_root
from apr.hub.resolve import Pulled

_PIECE = 4 << 20


class Cancelled(Exception):
    """The caller no longer wants the sum."""


def file_records(pulled: Pulled, stop: threading.Event | None = None) -> tuple[FileRecord, ...]:
    """Path, size and checksum of a model's weight files; `Cancelled` once stop is set."""
    if pulled.manifest is not None:
        return pulled.files()
    return tuple(
        FileRecord(path.name, path.stat().st_size, file_sha256(path, stop))
        for path in pulled.weight_paths()
    )


def file_sha256(path: Path, stop: threading.Event | None = None) -> str:
    """The file's SHA-256, from the cache if the file is the same as when it was last read."""
    try:
        with open(path, "rb", buffering=0) as file:
            entry = _entry(path.resolve(), os.fstat(file.fileno()))
            if entry.is_file():
                known = entry.read_text()
                if len(known) == 64:
                    return known
            digest = hashlib.sha256()
            buffer = memoryview(bytearray(_PIECE))
            while count := file.readinto(buffer):
                if stop is not None and stop.is_set():
                    raise Cancelled
                digest.update(buffer[:count])
    except OSError as error:
        raise AprError(f"{path} cannot be read: {error.strerror or error}") from None
    _remember(entry, digest.hexdigest())
    return digest.hexdigest()


def fingerprint(pulled: Pulled) -> str:
    """16 hexadecimal digits that change when the weights do.

    Fetched models: from the checksums verified when they were fetched. Local ones: from path, size
    and modification time of each weight file.
    """
    digest = hashlib.sha256()
    if pulled.manifest is not None:
        for record in pulled.files():
            digest.update(f"{record.path} {record.sha256}\n".encode())
    else:
        for path in pulled.weight_paths():
            status = path.stat()
            line = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(line.encode())
    return digest.hexdigest()[:16]


def _entry(path: Path, status: os.stat_result) -> Path:
    facts = (str(path), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    return cache_root() / "checksums" / key[:32]


def _remember(entry: Path, value: str) -> None:
    """Best effort: a cache that cannot be written only makes the next use slower."""
    with suppress(OSError):
        write_whole(entry, value)
