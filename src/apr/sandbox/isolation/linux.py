"""The Linux system calls that Python lacks, by ctypes. Importable anywhere, usable on Linux.

Numbers: include/uapi/asm-generic/unistd.h (aarch64) and arch/x86/entry/syscalls (x86_64).
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MNT_DETACH = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x2008_0522

IS_LINUX = sys.platform == "linux"
MACHINE = platform.machine()
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126},
    "aarch64": {"pivot_root": 41, "capset": 91},
}.get(MACHINE, {})
_MOUNT_SETATTR = 442
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446

_libc = ctypes.CDLL(None, use_errno=True) if IS_LINUX else None
if _libc is not None:
    _libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(function: str, *args: object) -> int:
    if _libc is None:
        raise OSError(f"{function}: only on Linux")
    return _check(getattr(_libc, function)(*args), function)


def _syscall(name: str, number: int | None, *args: object) -> int:
    if _libc is None or number is None:
        raise OSError(f"{name}: not on {sys.platform} {MACHINE}")
    return _check(_libc.syscall(ctypes.c_long(number), *args), name)


def unshare(flags: int) -> None:
    _call("unshare", flags)


def setns(fd: int, kind: int) -> None:
    _call("setns", fd, kind)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2); the error names the target."""
    try:
        _call(
            "mount",
            source.encode(),
            os.fsencode(target),
            kind.encode(),
            ctypes.c_ulong(flags),
            options.encode() or None,
        )
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({target})") from None


def unmount(target: str) -> None:
    _call("umount2", os.fsencode(target), MNT_DETACH)


def make_read_only(target: str) -> None:
    """Read-only and nosuid, for the mount at `target` and all below it (Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    _syscall(
        "mount_setattr",
        _MOUNT_SETATTR,
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def pivot_root(new_root: str) -> None:
    """Make `new_root` (a mount point) the root; the old one is gone from view."""
    os.chdir(new_root)
    _syscall("pivot_root", _NUMBERS.get("pivot_root"), b".", b".")
    unmount(".")
    os.chdir("/")


def die_with_parent(signal_number: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Orphaned descendants become children of this process (so that it can end them)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Processes of the same user may not trace this one or read its memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def keep_capabilities_once() -> None:
    """The next change of user keeps the permitted capabilities."""
    _prctl(_PR_SET_KEEPCAPS, 1)


def no_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_name(name: str) -> None:
    """The name that ps and top show (15 characters)."""
    _call("prctl", _PR_SET_NAME, ctypes.c_char_p(name.encode()))


def _prctl(option: int, value: int) -> None:
    args = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    _call("prctl", option, *args)


def set_capabilities(mask: int) -> None:
    """Exactly these capabilities, permitted and effective; none inheritable."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _syscall("capset", _NUMBERS.get("capset"), header, data)


def effective_capabilities() -> int:
    """Bit mask from /proc/self/status."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class SyscallFilter:
    """A seccomp program, laid out in memory once, so that installing it is one call."""

    def __init__(self, program: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(program, len(program))
        self._program = _FilterProgram(
            len(program) // 8, ctypes.cast(self._buffer, ctypes.c_void_p)
        )

    def install(self) -> None:
        """For this process and its descendants, for good. Needs no_new_privileges()."""
        _call(
            "prctl",
            _PR_SET_SECCOMP,
            ctypes.c_ulong(_SECCOMP_MODE_FILTER),
            ctypes.byref(self._program),
            ctypes.c_ulong(0),
            ctypes.c_ulong(0),
        )


def landlock_abi() -> int:
    """Version of Landlock in this kernel; OSError where there is none."""
    version_flag = ctypes.c_uint(1)
    return _syscall("Landlock", _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), version_flag)


def landlock_create(files: int, network: int, scopes: int) -> int:
    """Descriptor of a ruleset that handles (denies by default) these accesses."""
    attributes = (ctypes.c_uint64 * 3)(files, network, scopes)
    # Older kernels accept a longer structure if the part they do not know is zero.
    return _syscall(
        "landlock_create_ruleset",
        _LANDLOCK_CREATE_RULESET,
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        ctypes.c_uint(0),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_allow(ruleset: int, path: str, accesses: int) -> None:
    """Allow accesses to `path` and what is below it."""
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
    try:
        rule = _PathBeneath(accesses, parent)
        _syscall(
            "landlock_add_rule",
            _LANDLOCK_ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(1),
            ctypes.byref(rule),
            ctypes.c_uint(0),
        )
    finally:
        os.close(parent)


def landlock_restrict(ruleset: int) -> None:
    _syscall(
        "landlock_restrict_self", _LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0)
    )
