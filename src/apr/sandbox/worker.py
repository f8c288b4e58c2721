"""One worker: takes jobs from the pool, has each run and judged, reports outcomes.

    pool (apr) ── worker ── zygote ── candidate    one per job, confined
                    └── judge                      one for many jobs

The zygote is forked before the first job arrives, so no ancestor of a candidate ever held a
test. The judge and the candidate of a job talk over a socket of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import time
from typing import Any

from . import channel, processes, zygote
from .isolation import confine, levels, linux, view
from .isolation.confine import Confinement
from .judging import judge
from .processes import how_it_ended
from .watch import LOOK_EVERY, Observer, Watch

MAX_JOB = judge.MAX_JOB
_JOBS_OF_A_JUDGE = 500
_SCM_CREDENTIALS = 2


def main(fd: int) -> None:
    """Serve the pool at socket `fd` until it closes.

    Messages: in {"level", "base", "preload", "libraries", "processor"}; out {"level", "weakness"}
    or {"error"}; then in jobs (fields of job.Job), out outcomes.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may ignore it
    resource.setrlimit(resource.RLIMIT_NOFILE, (confine.MAX_DESCRIPTORS,) * 2)
    order = channel.receive_trusted(fd, MAX_JOB)
    base = order["base"]
    place = _Place(base)
    if order["processor"] is not None:
        os.sched_setaffinity(0, {order["processor"]})
    if linux.IS_LINUX:
        linux.set_name("apr-worker")
        _offer_to_out_of_memory_killer()
    try:
        worker = Worker(fd, order["level"], base, order["preload"], order["libraries"])
    except OSError as error:
        channel.send_trusted(fd, {"error": error.strerror or str(error)})
        return
    except channel.Closed:
        raise SystemExit("the process that programs are forked from ended at once") from None
    channel.send_trusted(fd, {"level": order["level"], "weakness": worker.weakness})
    try:
        worker.serve()
    except channel.Closed:
        ended = worker.close()
        place.remove()
        if ended:
            raise SystemExit(f"the process that programs are forked from ended: {ended}") from None


class _Place:
    """A worker's directory in the sandbox's, reachable from whatever view the worker moves to."""

    def __init__(self, base: str) -> None:
        sandbox, self._name = os.path.split(base)
        above, self._sandbox_name = os.path.split(sandbox)
        self._sandbox = os.open(sandbox, os.O_RDONLY | os.O_DIRECTORY)
        self._above = os.open(above, os.O_RDONLY | os.O_DIRECTORY)

    def remove(self) -> None:
        """Remove it, and the sandbox's as well if who opened the sandbox was killed.

        The pool holds a lock on its directory as long as it lives. Otherwise the last worker to
        end finds the directory empty.
        """
        with contextlib.suppress(OSError):  # not empty: the pool's to remove
            os.rmdir(self._name, dir_fd=self._sandbox)
            fcntl.flock(self._sandbox, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.rmdir(self._sandbox_name, dir_fd=self._above)


class Worker:
    def __init__(
        self, fd: int, level: str, base: str, preload: list[str], libraries: list[str] | None
    ) -> None:
        self._pool = fd
        self._base = base
        self._observer = Observer()
        self._confinement = levels.prepare(level, base)
        self.weakness = levels.weakness(self._confinement)
        if libraries is not None:
            view.limit_imports(libraries)
        if linux.IS_LINUX:
            linux.hide_memory()
        if linux.IS_LINUX:
            linux.adopt_orphans()  # of the zygote, should it end first
        self._control, end = socket.socketpair()
        if level == "full":
            self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._zygote = os.fork()
        if self._zygote == 0:
            status = 1
            try:
                self._control.close()
                os.close(fd)
                zygote.serve(end, self._confinement, base, preload)
                status = 0
            finally:
                os._exit(status)
        end.close()
        self._judge: _JudgeProcess | None = None
        if not self._control.recv(1):
            raise OSError("its modules could not be imported")
        self._try_out()

    def close(self) -> str:
        """Wait until the zygote has ended what is running and removed its files. If it was ended by
        another, do so in its place, and say how.
        """
        if self._judge is not None:
            # First: as process 1 the zygote cannot end before all others of its namespace are
            # waited for.
            self._judge.end()
        ended, status = os.waitpid(self._zygote, os.WNOHANG)
        self._control.close()
        if not ended:
            _, status = os.waitpid(self._zygote, 0)
        processes.end_descendants(self._zygote, self._confinement)  # what has become ours
        if ended and self._confinement.level != "full":
            processes.empty(self._base)
        return how_it_ended(status) if ended else ""

    def serve(self) -> None:
        """Run jobs; raises channel.Closed when the pool is gone."""
        while True:
            job = channel.receive_trusted(self._pool, MAX_JOB)
            channel.send_trusted(self._pool, self._run(job))

    def _try_out(self) -> None:
        """One harmless program; OSError if it does not pass."""
        job = {
            "program": "def f(x): return x",
            "test": "assert f([1]) == [1]",
            "entry_point": "f",
            "trusted": "",
            "time_limit": 30.0,
            "memory": 4 << 30,
            "output": 1 << 20,
            "processes": 64,
            "files": {},
            "judge": "proxy",
            "prelude": "",
            "cases": [],
            "total_limit": None,
            "slack": 1.0,
        }
        outcome = self._run(job)
        if outcome["verdict"] != "passed":
            raise OSError(f"a trial program did not pass: {outcome['detail']}")

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["judge"] not in ("stdin", "functional", "calls"):
            return self._run_once(job)
        if not job["cases"]:
            return {"verdict": "sandbox-error", "detail": "the job has no test"}
        if job["judge"] == "calls":
            return self._run_parts(job)
        if job["judge"] == "functional":
            return self._run_once(job)
        return self._run_scripts(job)

    def _run_parts(self, job: dict[str, Any]) -> dict[str, Any]:
        """A process for each part of the cases, up to the first that fails."""
        total = {"cpu": 0.0, "wall": 0.0, "peak_rss": 0, "share": 0.0}
        report: dict[str, Any] = {}
        answers: list[tuple[float, bytes]] = []
        first = 0
        for name, count in job["parts"]:
            report = self._run_once({**job, "cases": job["cases"][first : first + count]})
            total["cpu"] += report["cpu"]
            total["wall"] += report["wall"]
            total["peak_rss"] = max(total["peak_rss"], report["peak_rss"])
            total["share"] = max(total["share"], report["share"])
            answers += report.pop("answers", [])
            if report["verdict"] != "passed":
                report["part"] = name
                break
            if job["slack"] > 1 and total["share"] > 1:
                break  # it starts again alone, and this part may end otherwise
            first += count
        return {**report, **total, "answers": answers}

    def _run_scripts(self, job: dict[str, Any]) -> dict[str, Any]:
        """A process for each case, up to the first that fails."""
        total = {"cpu": 0.0, "wall": 0.0, "peak_rss": 0, "share": 0.0}
        report: dict[str, Any] = {}
        for number, case in enumerate(job["cases"], 1):
            report = self._run_once({**job, "cases": [case]}, own_bytes=len(case[0].encode()) + 1)
            total["cpu"] += report["cpu"]
            total["wall"] += report["wall"]
            total["peak_rss"] = max(total["peak_rss"], report["peak_rss"])
            total["share"] = max(total["share"], report["share"])
            if report["verdict"] != "passed":
                report["detail"] += f" (test {number} of {len(job['cases'])})"
                break
        return {**report, **total}

    def _run_once(self, job: dict[str, Any], own_bytes: int = 0) -> dict[str, Any]:
        """Run one process and have it judged.

        own_bytes: what its files may hold besides what the job allows (the input of a script, and
        a byte by which too much output shows).
        """
        ours, theirs = socket.socketpair()
        seconds = job["total_limit"] or job["time_limit"] * max(1, len(job["cases"]))
        order = {
            "cpu": seconds * job["slack"],
            "memory": job["memory"],
            "output": job["output"] + own_bytes,
            "processes": job["processes"],
            "files": job["files"],
        }
        if self._confinement.level == "full":
            view.fresh_root(order["output"])
        socket.send_fds(self._control, [b"s"], [theirs.fileno()])
        channel.send_trusted(self._control.fileno(), order)
        theirs.close()
        if self._judge is None:
            self._judge = _JudgeProcess(self._confinement, [self._pool, self._control.fileno()])
        self._judge.start(ours, job)
        start = time.monotonic()
        candidate = self._receive_pid()
        places = (candidate, self._zygote, self._judge.pid)
        watch = Watch(self._observer, *places, job, start)
        if self._confinement.level != "full":
            watch.directory = self._base
            watch.output = order["output"]
        decision = self._await(self._judge.socket.fileno(), watch)
        if (
            decision["verdict"] not in ("passed", "failed", "gone", "needs-whole")
            or self._judge.worn_out
        ):
            self._judge.end()
            self._judge = None
        wall = time.monotonic() - start
        # Gone means its socket closed: give it the moment it needs to become a wait status.
        channel.send_trusted(self._control.fileno(), 0.2 if decision["verdict"] == "gone" else 0.0)
        used = channel.receive_trusted(self._control.fileno(), MAX_JOB)
        watch.end(used["cpu"])
        decision = _settle(decision, used, order["cpu"])
        if watch.laps and decision["verdict"] != "passed" and job["judge"] != "calls":
            decision["detail"] += f" (test {watch.laps} of {len(job['cases'])})"
        return {
            **decision,
            "cpu": max(used["cpu"], watch.seconds),  # not all are waited for if the watch decides
            "wall": wall,
            "peak_rss": used["peak_rss"],
            "judge": job["judge"],
            "share": max(watch.share, used["cpu"] / seconds),
        }

    def _receive_pid(self) -> int:
        _, ancillary, _, _ = self._control.recvmsg(1, socket.CMSG_SPACE(12))
        pid = channel.receive_trusted(self._control.fileno(), MAX_JOB)["pid"]
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
                return struct.unpack("iII", data)[0]
        return pid

    def _await(self, result: int, watch: Watch) -> dict[str, Any]:
        """The judge's decision, or the watch's if that comes first."""
        poll = select.poll()
        poll.register(result, select.POLLIN)
        for other in (self._pool, self._control):
            poll.register(other, 0)  # hang-up only
        wait = min(LOOK_EVERY, watch.limit)
        while True:
            for fd, _ in poll.poll(wait * 1000):
                if fd != result:  # nobody waits for this outcome any more, or nobody can end it
                    raise channel.Closed
                try:
                    message = channel.receive_trusted(result, MAX_JOB)
                except channel.Closed:
                    return {"verdict": "error", "detail": "its answers broke the judge"}
                if "lap" not in message:
                    return message
                watch.lap(message["lap"])
            decision, wait = watch.look()
            if decision is not None:
                return decision


class _JudgeProcess:
    """A judge, for many jobs: it runs trusted code only, so jobs cannot reach each other in it."""

    def __init__(self, confinement: Confinement, close: list[int]) -> None:
        self.socket, end = socket.socketpair()
        self._jobs = 0
        self.pid = os.fork()
        if self.pid:
            end.close()
            return
        try:
            if linux.IS_LINUX:
                linux.set_name("apr-judge")
            self.socket.close()
            for fd in close:
                os.close(fd)
            confine.confine_judge(confinement)
            judge.serve(end)
        finally:
            os._exit(1)

    @property
    def worn_out(self) -> bool:
        """Whether a fresh one should take over (what tests leave in modules does not pile up)."""
        return self._jobs >= _JOBS_OF_A_JUDGE

    def start(self, candidate: socket.socket, job: dict[str, Any]) -> None:
        """Hand over a job and the socket to its candidate, which is closed here."""
        self._jobs += 1
        socket.send_fds(self.socket, [b"j"], [candidate.fileno()])
        channel.send_trusted(self.socket.fileno(), job)
        candidate.close()

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.socket.close()


def _settle(decision: dict[str, Any], used: dict[str, Any], limit: float) -> dict[str, Any]:
    """Tell from the wait status why a candidate is gone. limit: processor seconds it had."""
    if decision["verdict"] != "gone":
        return decision
    status = used["status"]
    if used["cpu"] >= 0.98 * limit:  # the kernel's clock and ours are not one
        return {"verdict": "timeout", "detail": "timed out"}
    if status is None:
        how = decision["detail"]
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return {"verdict": "memory", "detail": "failed: its process was killed"}
    else:
        how = f"its process {how_it_ended(status)}"
    return {"verdict": "error", "detail": f"failed: no answer, {how}"}


def _offer_to_out_of_memory_killer() -> None:
    """Should the machine run out of memory, candidates go first, not what started them."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
