"""The system-call filter: numbers against the kernel's headers, effects against the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apr.sandbox.isolation import linux, seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is of Linux")

HEADERS = {
    0: [
        Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        Path("/usr/include/asm/unistd_64.h"),
    ],
    1: [Path("/usr/include/asm-generic/unistd.h")],
}


def header_numbers(column: int) -> dict[str, int]:
    header = next((path for path in HEADERS[column] if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize("column", [0, 1], ids=["x86_64", "aarch64"])
def test_numbers_are_the_kernels(column: int) -> None:
    known = header_numbers(column)
    tables = {
        **seccomp._SOCKET,
        **seccomp._KILLERS,
        **seccomp._REFUSED,
        **seccomp._OUTSIDE,
        **{name: numbers for name, (numbers, _) in seccomp._OF_PROCESSES.items()},
        **seccomp._NAMESPACES,
        "fcntl": seccomp._FCNTL,
        "ioctl": seccomp._IOCTL,
        "clone": seccomp._CLONE,
        "clone3": seccomp._CLONE3,
        "rt_sigaction": seccomp._SIGACTION,
    }
    ours = {name: numbers[column] for name, numbers in tables.items()}
    theirs = {name: known.get(name) for name in ours}
    # Headers may be older than the newest calls.
    assert {n: v for n, v in ours.items() if theirs[n] is not None} == {
        n: v for n, v in theirs.items() if v is not None
    }
    assert sum(v is not None for v in theirs.values()) > 50


def test_unknown_machine() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.build_filter("riscv64")


def under_filter(program: bytes, attempt: Callable[[], int]) -> int:
    """What `attempt` returns in a child under the filter: an errno, 0 for success."""
    child = os.fork()
    if child == 0:
        try:
            linux.no_new_privileges()
            linux.SyscallFilter(program).install()
            os._exit(attempt())
        finally:
            os._exit(255)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def call(number: int, *arguments: int) -> Callable[[], int]:
    libc = ctypes.CDLL(None, use_errno=True)

    def attempt() -> int:
        result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        return ctypes.get_errno() if result == -1 else 0

    return attempt


COLUMN = 0 if platform.machine() == "x86_64" else 1
FILTER = (
    seccomp.build_filter(platform.machine())
    if platform.machine() in seccomp._ARCHITECTURES
    else b""
)


def number(table: dict[str, tuple[int | None, int | None]], name: str) -> int:
    found = table[name][COLUMN]
    if found is None:
        pytest.skip(f"{platform.machine()} has no {name}")
    return found


@pytest.mark.parametrize("name", sorted({**seccomp._REFUSED, **seccomp._NAMESPACES}))
def test_refused(name: str) -> None:
    table = {**seccomp._REFUSED, **seccomp._NAMESPACES}
    # Impossible arguments: without the filter every one of these fails in another way.
    assert under_filter(FILTER, call(number(table, name), -1, -1, -1)) == errno.EPERM


@pytest.mark.parametrize(
    ("family", "expected"), [(1, 0), (2, errno.EPERM), (10, errno.EPERM), (16, errno.EPERM)]
)
def test_sockets_by_family(family: int, expected: int) -> None:
    assert under_filter(FILTER, call(seccomp._SOCKET["socket"][COLUMN], family, 1, 0)) == expected


def test_clone3_is_not_there_and_fork_is() -> None:
    assert under_filter(FILTER, call(seccomp._CLONE3[COLUMN], 0, 0)) == errno.ENOSYS

    def fork() -> int:
        child = os.fork()
        if child == 0:
            os._exit(0)
        return os.waitpid(child, 0)[1]

    assert under_filter(FILTER, fork) == 0


@pytest.mark.parametrize("flag", [0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x02000000])
def test_clone_makes_no_namespaces(flag: int) -> None:
    signal_number = 17
    attempt = call(seccomp._CLONE[COLUMN], flag | signal_number, 0, 0, 0, 0)
    assert under_filter(FILTER, attempt) == errno.EPERM


def test_signals_to_oneself_only() -> None:
    parent = os.getpid()

    def attempt() -> int:
        linux.SyscallFilter(seccomp.build_filter(platform.machine(), os.getpid())).install()
        os.kill(os.getpid(), 0)
        try:
            os.kill(parent, 0)
        except PermissionError:
            return 0
        return 1

    assert under_filter(FILTER, attempt) == 0


def test_the_two_halves_make_the_whole() -> None:
    first = seccomp.build_filter(platform.machine(), namespaces=True)
    unshare = call(number(seccomp._NAMESPACES, "unshare"), 0)
    assert under_filter(first, unshare) == 0

    def attempt() -> int:
        linux.SyscallFilter(seccomp.build_namespace_filter(platform.machine())).install()
        return unshare()

    assert under_filter(first, attempt) == errno.EPERM


def test_another_architectures_numbers_end_the_process() -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    assert under_filter(seccomp.build_filter(other), call(39)) < 0
