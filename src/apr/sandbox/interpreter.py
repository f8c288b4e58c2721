"""Which Python runs the programs, and what is installed for it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from apr.common.errors import UsageError

OLDEST = (3, 10)
_SECONDS = 60
_ASK = """
import json, sys
from importlib.metadata import distributions
packages = {(d.metadata["Name"] or "").lower(): d.version for d in distributions()}
print(json.dumps([list(sys.version_info[:3]), packages]))
"""


@dataclass(frozen=True)
class Interpreter:
    """path: as given, or our own. packages: distribution name -> version."""

    path: str
    version: str
    packages: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Of what may decide a verdict: versions, not places."""
        facts = json.dumps([self.version, self.packages], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def find_interpreter(python: str | None = None) -> Interpreter:
    """Ask an interpreter (default: ours) what it is. Raises UsageError if it cannot be used."""
    path = python or sys.executable
    try:
        done = subprocess.run(
            [path, "-s", "-B", "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        version, packages = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it does not answer as a Python does"
        raise UsageError(f"--python {path}: {why}", "name an interpreter's file") from None
    number = ".".join(map(str, version))
    if tuple(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(f"--python {path} is Python {number}", f"{oldest} or newer is needed")
    return Interpreter(path, number, packages)
