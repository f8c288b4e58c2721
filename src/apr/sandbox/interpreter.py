"""Which Python runs the programs, and what is installed for it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apr.common.errors import UsageError

OLDEST = (3, 10)
_SECONDS = 60
# What is installed; of some modules: their packages and those that these require.
_ASK = """
import json, re, sys
from importlib.metadata import distributions

def plain(name):
    return re.sub("[-_.]+", "-", name or "").lower()

found = {plain(d.metadata["Name"]): d for d in distributions()}
modules = json.loads(sys.argv[1])
if modules is not None:
    from importlib.metadata import packages_distributions
    owners = {name: set(map(plain, held)) for name, held in packages_distributions().items()}
    packages, todo = set(), [owner for name in modules for owner in owners.get(name, ())]
    while todo:
        name = todo.pop()
        if name in found and name not in packages:
            packages.add(name)
            wanted = [line for line in found[name].requires or () if "extra ==" not in line]
            todo += [plain(re.match(r"[\\w.-]+", line)[0]) for line in wanted]
    found = {name: found[name] for name in packages}
    modules = sorted(name for name, held in owners.items() if held & packages)
versions = {name: d.version for name, d in sorted(found.items())}
print(json.dumps([list(sys.version_info[:3]), versions, modules]))
"""


@dataclass(frozen=True)
class Interpreter:
    """path: as given, or our own. packages: distribution name -> version, of those that programs
    may import from. libraries: the modules of these, besides the standard library; None: all.
    """

    path: str
    version: str
    packages: Mapping[str, str]
    libraries: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """Of what may decide a verdict: versions, not places."""
        facts = json.dumps([self.version, self.packages], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """What programs may import: the standard library of this version, and libraries."""
        return {"standard_library": self.version, "libraries": dict(self.packages)}


def find_interpreter(
    python: str | None = None, modules: Sequence[str] | None = None
) -> Interpreter:
    """Ask an interpreter (default: ours) what it is. modules: that programs may import besides the
    standard library, with what they require themselves; None: all that is installed.

    Raises UsageError if it cannot be used.
    """
    path = python or sys.executable
    try:
        done = subprocess.run(
            [path, "-s", "-B", "-c", _ASK, json.dumps(modules)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        version, packages, found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it does not answer as a Python does"
        raise UsageError(f"--python {path}: {why}", "name an interpreter's file") from None
    number = ".".join(map(str, version))
    if tuple(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(f"--python {path} is Python {number}", f"{oldest} or newer is needed")
    return Interpreter(path, number, packages, None if found is None else tuple(found))
