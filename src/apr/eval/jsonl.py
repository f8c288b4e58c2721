"""Rows of JSON Lines files, plain or gzipped, with errors that name file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apr.errors import AprError, UsageError

_GZIP_MAGIC = b"\x1f\x8b"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for every line that is not blank.

    Raises UsageError for a file that is missing, is not UTF-8 or has a line that is not a JSON
    object; AprError for a damaged gzip file. Whether it is gzipped is read from its first bytes.
    """
    try:
        text = _contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(
                f"{path}, line {number}: {type(row).__name__} where an object was expected"
            )
        yield number, row


def field(path: Path, line: int, row: dict[str, Any], name: str) -> str:
    """A text field of a row; UsageError if it is missing or not text."""
    if name not in row:
        raise UsageError(f"{path}, line {line}: no field {name!r}")
    value = row[name]
    if not isinstance(value, str):
        raise UsageError(
            f"{path}, line {line}: field {name!r} is {type(value).__name__}, expected text"
        )
    return value


def file_sha256(path: Path) -> str:
    """Checksum of a file as it is on disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _contents(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise AprError(f"{path}: damaged gzip file: {error}", "fetch it again") from None
