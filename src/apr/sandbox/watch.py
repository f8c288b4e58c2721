"""What a running candidate uses, and when that is enough: time, memory, disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .processes import descendants, read_proc

# Backstop: for a machine so busy that processor time hardly passes. Far away where it is known
# how long a program stood in line, for what waits for anything else is out of time before.
WALL_FACTOR = 10
WALL_EXTRA = 5.0
FAR = 20
LOOK_EVERY = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Line(NamedTuple):
    """Of a process, its first thread: seconds it stood in line for a processor, seconds it ran."""

    waited: float
    ran: float


class Usage(NamedTuple):
    """What living processes use. seconds: of processor time, with that of the dead they waited for.
    resident: bytes; pages they share count for each. lines: process -> Line, empty where unknown.
    """

    seconds: float
    resident: int
    lines: dict[int, Line]


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

    def line(self, pid: int) -> Line | None:
        """None where unknown."""
        if self._proc is None:
            return None
        fields = read_proc(f"{pid}/schedstat", self._proc).split()
        return Line(int(fields[1]) / 1e9, int(fields[0]) / 1e9) if len(fields) == 3 else None

    def below(self, pid: int) -> Usage:
        """What all descendants of a process use together."""
        if self._proc is None:
            return Usage(0.0, 0, {})
        seconds, pages = 0.0, 0
        lines = {}
        for member in descendants(pid, self._proc):
            # After the name in parentheses, fields 3 and on of proc_pid_stat(5).
            fields = read_proc(f"{member}/stat", self._proc).rpartition(")")[2].split()
            line = self.line(member)
            if line is not None:
                lines[member] = line
            if fields:
                own, waited_for = (sum(map(int, fields[n : n + 2])) / _TICKS for n in (11, 13))
                seconds += max(own, line.ran if line else 0.0) + waited_for  # ticks are coarse
                pages += int(fields[21])
        return Usage(seconds, pages * _PAGE, lines)

    def unlinked_bytes(self, pids: Iterable[int]) -> int:
        """Bytes of files without a name that processes have open, where we may look."""
        files = {}
        for pid in pids:
            try:
                with _opened(f"{pid}/fd", self._proc) as folder, os.scandir(folder) as entries:
                    for entry in entries:
                        found = entry.stat()
                        if stat.S_ISREG(found.st_mode) and not found.st_nlink:
                            files[found.st_dev, found.st_ino] = found.st_blocks * 512
            except OSError:  # ended, or of a user whom we may not look at
                continue
        return sum(files.values())


@contextlib.contextmanager
def _opened(path: str, beside: int | None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=beside)
    try:
        yield fd
    finally:
        os.close(fd)


def directory_bytes(path: str, at_most: int) -> int:
    """Bytes below a directory; stops counting above `at_most`. Files count a block at least.

    A folder that is too deep or closed to be looked into counts as full: it may hold anything.
    """
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
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.EACCES):
                return at_most + 1
            # Otherwise it was removed meanwhile.
    return total


class Queue:
    """How long a candidate could have run and did not, because the machine did something else.

    While one of its processes stands in line others of it may run: that is no credit. So a process
    has credit for the time it stood in line less the time that all others of the candidate ran, and
    of several that stand there at once only the longest counts. `seconds` is the sum.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._busy = 0.0
        self._seen: dict[int, tuple[float, float]] = {}  # when it last left the line

    def look(self, lines: Mapping[int, Line], busy: float) -> None:
        """lines: of processes that live. busy: seconds that all of the candidate's have run so far.

        (The kernel tells how long one stood in line when it leaves, so that is what counts.)
        """
        longest = 0.0
        for pid, line in lines.items():
            others = busy - line.ran
            waited, before = self._seen.get(pid, (0.0, self._busy))
            if line.waited < waited:  # another process by the same number
                waited, before = 0.0, self._busy
            if line.waited > waited or pid not in self._seen:
                longest = max(longest, line.waited - waited - (others - before))
                self._seen[pid] = line.waited, others
        self.seconds += longest
        self._busy = max(self._busy, busy)


class Watch:
    """Decides that a candidate has had enough time, memory or disk.

    It may take `slack` times its limit; `share` is how much of the limit it took, at most in a lap.
    """

    def __init__(
        self,
        observer: Observer,
        candidate: int,
        parent: int,
        judge: int,
        job: dict[str, Any],
        start: float,
    ) -> None:
        """candidate: its first process. parent: of that and of its orphans, and of nothing else."""
        self._slack: float = job["slack"]
        self.limit: float = job["time_limit"] * self._slack
        self.share = 0.0
        self.directory: str | None = None
        self._observer = observer
        self._candidate = candidate
        self._parent = parent
        self._judge = judge
        self.output: int = job["output"]
        self.laps = 0  # tests begun, where each has its own time
        self.seconds = 0.0  # of processor time at the last look
        self._rest = 0.0  # of it, what was not of the first process
        self._memory: int = job["memory"]
        self._start = start
        self._backstop = job["time_limit"] * WALL_FACTOR + WALL_EXTRA
        self._used = 0.0  # processor time before this lap
        self._queue, self._judges_queue = Queue(), Queue()
        self._stand_in_line({})
        self._waited = self._queued()  # before this lap

    def lap(self, limit: float | None) -> None:
        """Count time from here on. limit: from now on; None leaves it as it is."""
        self.laps += 1
        self.seconds = max(self.seconds, self._observer.cpu_seconds(self._candidate) + self._rest)
        self.end(self.seconds)
        self.limit = self.limit if limit is None else limit * self._slack
        self._start = time.monotonic()
        self._used = self.seconds
        line = self._observer.line(self._candidate)
        self._stand_in_line({} if line is None else {self._candidate: line})
        self._waited = self._queued()

    def end(self, seconds: float) -> None:
        """Of a lap, after so much processor time in all."""
        self._took(seconds - self._used)

    def _took(self, seconds: float) -> None:
        self.share = max(self.share, seconds * self._slack / self.limit)

    def _stand_in_line(self, lines: Mapping[int, Line]) -> None:
        self._queue.look(lines, self.seconds)
        line = self._observer.line(self._judge)
        if line is not None:
            self._judges_queue.look({self._judge: line._replace(ran=0.0)}, self.seconds)

    def _queued(self) -> float:
        return self._queue.seconds + self._judges_queue.seconds

    def look(self) -> tuple[dict[str, Any] | None, float]:
        """A decision or None, and how many seconds may pass before the next look.

        Time is what would have passed on an idle machine: processor time, or wall time less the
        time that candidate or judge stood in line for a processor, whichever is more. (Processes
        that run beside each other are counted by their processor time.)
        """
        usage = self._observer.below(self._parent)
        first = self._observer.cpu_seconds(self._candidate)
        self.seconds = max(self.seconds, first, usage.seconds)
        self._rest = self.seconds - first if first else self._rest
        used = self.seconds - self._used
        passed = time.monotonic() - self._start
        backstop = self._backstop
        if usage.lines:
            self._stand_in_line(usage.lines)
            used = max(used, passed - (self._queued() - self._waited))
            backstop *= FAR
        self._took(used)
        if used >= self.limit or passed >= backstop:
            return {"verdict": "timeout", "detail": "timed out"}, 0.0
        if usage.resident > self._memory:
            return {"verdict": "memory", "detail": "failed: uses more memory than allowed"}, 0.0
        if self.directory:
            stored = directory_bytes(self.directory, self.output)
            if stored + self._observer.unlinked_bytes(usage.lines) > self.output:
                told = "failed: writes more than allowed"
                return {"verdict": "output-limit", "detail": told}, 0.0
        return None, min(LOOK_EVERY, max(self.limit - used, 0.005))
