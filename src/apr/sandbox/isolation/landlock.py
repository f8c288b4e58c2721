"""Which files the candidate may touch, as a Landlock ruleset (Linux 5.13; docs.kernel.org).

Rules are allow-lists over directory trees, so a package to be hidden inside an allowed tree is
left out by naming its neighbours one by one.
"""

# ruff: noqa: PTH110, PTH112
from __future__ import annotations

import os
from collections.abc import Collection

from . import linux

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE = 1 << 14
_IOCTL_DEVICE = 1 << 15
_FILE_ACCESSES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_DEVICE = _READ_FILE | _WRITE_FILE
_NET_TCP = 0b11  # bind, connect
_SCOPE_ALL = 0b11  # abstract unix sockets, signals


def scopes_signals(abi: int) -> bool:
    """Whether a domain's processes can be kept from signalling others."""
    return abi >= 6


def _accesses(abi: int) -> int:
    """All file accesses this version can deny."""
    count = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    return (1 << count) - 1


def build_ruleset(
    readable: Collection[str], writable: Collection[str], hidden: Collection[str]
) -> int:
    """Descriptor of a ruleset: read and execute `readable` except `hidden`, all of `writable`.

    Raises OSError where the kernel has no Landlock.
    """
    abi = linux.landlock_abi()
    files = _accesses(abi)
    ruleset = linux.landlock_create(
        files, _NET_TCP if abi >= 4 else 0, _SCOPE_ALL if scopes_signals(abi) else 0
    )
    for path in readable:
        _allow_tree(ruleset, path, frozenset(hidden))
    for path in writable:
        linux.landlock_allow(ruleset, path, files)
    for name in ("null", "zero", "full", "random", "urandom"):
        if os.path.exists(f"/dev/{name}"):
            linux.landlock_allow(ruleset, f"/dev/{name}", _DEVICE)
    return ruleset


def _allow_tree(ruleset: int, path: str, hidden: frozenset[str]) -> None:
    if not os.path.isdir(path):
        linux.landlock_allow(ruleset, path, _READ & _FILE_ACCESSES)
        return
    below = [name for name in hidden if name.startswith(path.rstrip("/") + "/")]
    if not below:
        linux.landlock_allow(ruleset, path, _READ)
        return
    linux.landlock_allow(ruleset, path, _READ_DIR)  # names only, contents entry by entry
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.path not in hidden and not entry.is_symlink():
                _allow_tree(ruleset, entry.path, hidden)
