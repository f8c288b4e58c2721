"""What a running candidate has used, seen from outside."""

from __future__ import annotations

import os
import sys
import time
from typing import NamedTuple

from .cleanup import descendants, read_proc

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """seconds: of processor time. resident: bytes. waited: process -> seconds that it stood in line
    for a processor; empty where unknown.
    """

    seconds: float
    resident: int
    waited: dict[int, float]


class Observer:
    """Readings of processes by id, from /proc as it was when this was made."""

    def __init__(self) -> None:
        self._proc: int | None = None
        if sys.platform == "linux":
            self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)

    def cpu_seconds(self, pid: int) -> float:
        """Processor time of a process, all threads; 0.0 once it has ended, or where unknown."""
        if self._proc is None:
            return 0.0
        try:
            # The clock of another process (clock_getcpuclockid).
            return time.clock_gettime((~pid << 3) | 2)
        except OSError:
            return 0.0

    def waited_seconds(self, pid: int) -> float | None:
        """How long a process was ready to run but had no processor; None where unknown."""
        if self._proc is None:
            return None
        fields = read_proc(f"{pid}/schedstat", self._proc).split()
        return int(fields[1]) / 1e9 if len(fields) == 3 else None

    def tree(self, pid: int) -> Usage:
        """What a process and all its living descendants use together.

        Pages they share count for each.
        """
        if self._proc is None:
            return Usage(0.0, 0, {})
        ticks = pages = 0
        waited = {}
        for member in {pid} | descendants(pid, self._proc):
            own = self.waited_seconds(member)
            if own is not None:
                waited[member] = own
            # After the name in parentheses, fields 3 and on of proc_pid_stat(5).
            fields = read_proc(f"{member}/stat", self._proc).rpartition(")")[2].split()
            if fields:
                ticks += int(fields[11]) + int(fields[12])
                pages += int(fields[21])
        return Usage(ticks / _TICKS, pages * _PAGE, waited)


def directory_bytes(path: str, at_most: int) -> int:
    """Bytes below a directory; stops counting above `at_most`. Files count a block at least."""
    total = 0
    todo = [path]
    while todo and total <= at_most:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_size, 4096)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    if total > at_most:
                        break
        except OSError:  # removed, or made unreadable, meanwhile
            continue
    return total
