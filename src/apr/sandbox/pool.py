"""The sandbox as its users see it: jobs in, outcomes out, N workers between."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from apr.common.errors import AprError, UsageError
from apr.common.files import disk_errors
from apr.common.foreign import bounded, storable
from apr.sandbox import channel, speed
from apr.sandbox.job import LEVELS, Job, Level, Outcome
from apr.sandbox.judging import calls
from apr.sandbox.processes import remove_tree

# The worker's modules are loaded under a name of their own, from this folder alone: its
# interpreter may be another one, without apr, and must not import what apr imports.
_BOOT = """
import sys
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".")]
import types
package = types.ModuleType("apr_sandbox")
package.__path__ = [sys.argv[1]]
sys.modules["apr_sandbox"] = package
from apr_sandbox import worker
worker.main(int(sys.argv[2]))
"""
# As -I (no user site, nothing of ours on the path, nothing of the user's environment), but with
# a fixed hash seed, so that a program that depends on the order of a set gets one verdict.
_FLAGS = ("-s", "-B", "-c", _BOOT)
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",  # and no display, so that no program's result depends on the machine
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LD_BIND_NOW": "1",  # symbols resolved once, not again in every fork
}
# What programs import most, as far as it is small: every page of it is mapped in each fork.
DEFAULT_PRELOAD = (
    "bisect",
    "collections",
    "copy",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "re",
    "string",
    "typing",
)
_MAX_OUTCOME = 512 << 20
_PREFIX = "apr-sandbox-"
MAX_DETAIL = 2000  # characters
# A program that took a time limit within a third of it is run again, alone: programs share caches,
# two hardware threads share one core, and other work comes and goes. So it may go on that far
# behind its limit.
CLOSE = 1 / 3
SLACK = 1 + CLOSE
_TRIES = 3  # alone, for a program that is slower than its limit and not by a third
_CALM = 1.2  # times slower than at its best: the machine has other work
_PATIENCE = 10.0  # seconds that programs to be run again wait for calm, all together
_PAUSE = 0.5


class _WorkerFailed(Exception):
    pass


class _Worker:
    """A worker process and the job it has."""

    def __init__(self, python: str, base: str, order: dict[str, Any]) -> None:
        """order: as worker.main reads it, without `base`."""
        self.job: Job | None = None
        self.speed = 1.0  # that its limits were set for
        self.begun = 0.0
        self.again = False  # the job already cost a worker
        with disk_errors(Path(base)):
            self.base = tempfile.mkdtemp(dir=base)
            self._errors = tempfile.TemporaryFile(dir=base)  # noqa: SIM115 - open as long as we are
        ours, theirs = socket.socketpair()
        self.socket = ours
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [python, *_FLAGS, str(Path(__file__).parent), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=[theirs.fileno()],
                    env=_ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for us to handle
                )
            except OSError as error:
                self.socket.close()
                self._errors.close()
                raise _WorkerFailed(f"{python}: {error.strerror}") from None
        self.pid = self._process.pid
        self._send({**order, "base": self.base})

    def greet(self) -> str:
        """Wait until the worker is ready; what its level lacks. Raises _WorkerFailed with its
        reason.
        """
        hello = self.receive()
        if "error" in hello:
            self.close()
            raise _WorkerFailed(hello["error"])
        return hello["weakness"]

    def start(self, job: Job, speed: float, slack: float, whole: bool = False) -> None:
        """speed: seconds of a standard second. slack: times its limits that it may take. whole:
        with large expected values.
        """
        cases = list(job.cases()) if job.cases else []
        if job.judge == "calls":
            sent = (calls.sent(case, whole) for case in cases)
            cases = [(given, expected, limit * speed) for given, expected, limit in sent]
        self.job, self.speed, self.begun = job, speed, time.monotonic()
        self._send(
            {
                "program": job.program,
                "test": job.test,
                "trusted": job.trusted_prefix,
                "prelude": job.prelude,
                "cases": cases,
                "parts": list(job.parts) or [("", len(cases))],
                "rule": list(job.rule),
                "total_limit": job.total_limit and job.total_limit * speed,
                "slack": slack,
                "entry_point": job.entry_point,
                "judge": job.judge,
                "time_limit": job.time_limit * speed,
                "memory": job.memory_bytes,
                "output": job.output_bytes,
                "processes": job.processes,
                "files": dict(job.files),
            }
        )

    def receive(self) -> dict[str, Any]:
        try:
            return channel.receive_trusted(self.socket.fileno(), _MAX_OUTCOME)
        except (channel.Closed, channel.TooLarge):
            raise _WorkerFailed(self._last_words()) from None

    def _send(self, message: dict[str, Any]) -> None:
        # That it is gone shows when its answer is read, in one place.
        with contextlib.suppress(channel.Closed):
            channel.send_trusted(self.socket.fileno(), message)

    def _last_words(self) -> str:
        self.stop()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self._errors.close()
        if not lines:
            return f"it ended with status {self._process.returncode}"
        return lines[-1] if " " in lines[-1] else f"it ended with {lines[-1]}"

    def stop(self) -> None:
        """End the worker and everything below it. Closing its socket is the signal."""
        self.socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.stop()
        self._errors.close()


class Sandbox:
    """Runs untrusted programs, each in a confined process of its own.

    workers: programs at a time (default: the processors this process may use).
    level: "full", "confined", "limits" or "auto", the strongest this machine gives; "limits"
    only with allow_weak. `level` then says which it is, `level_reasons` why not a stronger one.
    python: the interpreter to run programs with (3.10 or newer). preload: modules to import
    once before programs are forked. libraries: the modules that programs may import besides the
    standard library; None: all that are installed.

    Raises UsageError for a level that does not exist or needs allow_weak, AprError where the
    machine does not give it. Use as a context manager; one thread at a time.
    """

    def __init__(
        self,
        workers: int | None = None,
        level: Literal["auto"] | Level = "auto",
        allow_weak: bool = False,
        python: str | None = None,
        preload: Sequence[str] = DEFAULT_PRELOAD,
        libraries: Sequence[str] | None = None,
    ) -> None:
        if level not in ("auto", *LEVELS):
            raise UsageError(f"sandbox level {level!r}", f"one of auto, {', '.join(LEVELS)}")
        if level == "limits" and not allow_weak:
            raise UsageError(
                "sandbox level 'limits' does not keep a program from your files or the network",
                "allow it explicitly with --allow-weak-sandbox",
            )
        if workers is not None and workers < 1:
            raise UsageError(f"sandbox workers is {workers}", "at least 1")
        if os.name != "posix":
            raise AprError("the sandbox needs Linux or macOS", "on Windows use WSL 2")
        self._count = workers or len(available_processors())
        self._python = python or sys.executable
        self._preload = tuple(preload)
        self._libraries = None if libraries is None else list(libraries)
        self._allow_weak = allow_weak
        self._wanted = level
        self._workers: list[_Worker] = []
        self._base = ""
        self._hold = -1  # descriptor of that directory, locked
        self._spawned = 0
        self._lock = threading.Lock()
        self._patience = 0.0
        self._measured = 0.0  # when, last
        self.speeds: list[float] = []  # seconds here of a standard second, as measured
        self.level: Level = "limits"
        self.level_reasons: dict[str, str] = {}

    def __enter__(self) -> Sandbox:
        with disk_errors(Path(tempfile.gettempdir())):
            _sweep()
            self._base, self._hold = _new_folder()
        try:
            self._workers.append(self._first_worker())
            others = [self._spawn() for _ in range(self._count - 1)]
            self._workers += others
            for worker in others:
                worker.greet()
        except _WorkerFailed as error:
            self._close()
            raise AprError(f"sandbox: a worker did not start: {error}") from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    @property
    def level_reason(self) -> str:
        """Why this level and not a stronger one, and what it lacks; empty for "full"."""
        return "; ".join(f"{level}: {why}" for level, why in self.level_reasons.items())

    def run(self, job: Job) -> Outcome:
        """Run one job."""
        return next(iter(self.run_many([job])))

    @property
    def speed(self) -> float:
        """Seconds here of a standard second, as measured last; 1.0 before that."""
        return self.speeds[-1] if self.speeds else 1.0

    def run_many(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Outcomes as they come. Takes a job from `jobs` only when a worker is free for it.

        Before the first, and where time decides, the machine is measured: limits are longer by
        that. A program that comes near one is run again when all others have ended, each alone;
        what it then takes decides. Leaving the iteration early ends what is running.
        """
        if not self._base:
            raise UsageError("the sandbox is not open", "use `with Sandbox() as sandbox:`")
        if not self._lock.acquire(blocking=False):
            raise UsageError("the sandbox is already running jobs", "one run_many at a time")
        try:
            self._fill_up()
            yield from self._run_many(iter(jobs))
        finally:
            self._drop_busy()
            self._lock.release()

    def _run_many(self, jobs: Iterator[Job]) -> Iterator[Outcome]:
        near: list[tuple[Job, Outcome]] = []
        more = True
        while True:
            while more and (worker := self._idle()):
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    if not self.speeds:
                        self._measure(worker)
                        worker = self._idle() or worker  # another one if that was lost
                    worker.start(job, self.speed, SLACK)
            if not any(worker.job for worker in self._workers):
                break
            for worker in self._ready():
                job = worker.job
                outcome = self._outcome(worker, SLACK)
                if outcome is None or job is None:
                    continue
                if self._is_near(worker, outcome):
                    near.append((job, outcome))
                else:
                    yield outcome
        self._patience = _PATIENCE
        for job, first in near:
            yield self._run_again(job, first)

    def _is_near(self, worker: _Worker, outcome: Outcome) -> bool:
        """Whether on a calmer machine, or a busier one, the outcome may have been another."""
        if outcome.verdict == "timeout":
            now = self.speed if self._measured > worker.begun else self._measure(worker)
            return now > SLACK * outcome.speed  # it did not have its time
        share = outcome.share * outcome.speed / min(self.speeds, default=1.0)
        return share > (1 - CLOSE if outcome.passed else 1)

    def _run_again(self, job: Job, first: Outcome) -> Outcome:
        """Alone. What is slower than its limit, but not by a third, has more than one try."""
        outcome = self._run_alone(job, SLACK)
        spent = first.cpu_seconds + outcome.cpu_seconds
        within = outcome.verdict != "timeout"
        tries = 1
        while within and outcome.share > 1 and tries < _TRIES:
            outcome = self._run_alone(job, 1.0)
            spent += outcome.cpu_seconds
            tries += 1
        close = within and (outcome.passed or tries > 1) and outcome.share > 1 - CLOSE
        return replace(outcome, retried=True, close=close, spent_seconds=spent)

    def _run_alone(self, job: Job, slack: float) -> Outcome:
        """When the machine is calm, or patience ends."""
        while (
            self._measure(self._workers[0]) > _CALM * min(self.speeds, default=1.0)
            and self._patience > 0
        ):
            time.sleep(_PAUSE)
            self._patience -= _PAUSE
        self._workers[0].start(job, self.speed, slack)
        while True:
            (worker,) = self._ready()
            outcome = self._outcome(worker, slack)
            if outcome is not None:
                return outcome

    def _measure(self, idle: _Worker) -> float:
        """The speed of an idle worker, which is `speed` from now on."""
        idle.start(speed.JOB, 1.0, 1.0)
        try:
            report = idle.receive()
        except _WorkerFailed:  # what was known last has to do
            self._workers.remove(idle)
            self._workers.append(self._spawn_ready())
        else:
            idle.job = None
            if report["verdict"] == "passed":
                self.speeds.append(speed.measured(report["answers"]))
        self._measured = time.monotonic()
        return self.speed

    def _outcome(self, worker: _Worker, slack: float) -> Outcome | None:
        """The outcome of a worker's job; None if the worker was lost and the job starts again."""
        job = worker.job
        assert job is not None
        try:
            report = worker.receive()
        except _WorkerFailed as error:
            report = {"verdict": "sandbox-error", "detail": f"lost a worker: {error}"}
            if self._replace(worker, job, slack):
                return None
        else:
            if report["verdict"] == "needs-whole":
                worker.start(job, worker.speed, slack, whole=True)
                return None
            worker.job, worker.again = None, False
        return Outcome(
            job_id=job.job_id,
            verdict=report["verdict"],
            detail=bounded(storable(report["detail"]), MAX_DETAIL),
            cpu_seconds=report.get("cpu", 0.0),
            wall_seconds=report.get("wall", 0.0),
            peak_rss=report.get("peak_rss", 0),
            level=self.level,
            level_reason=self.level_reason,
            judge=report.get("judge", job.judge),
            speed=worker.speed,
            share=report.get("share", 0.0),
            spent_seconds=report.get("cpu", 0.0),
            part=report.get("part", ""),
            answers=tuple((seconds, reply) for seconds, reply in report.get("answers", ())),
        )

    def _replace(self, lost: _Worker, job: Job, slack: float) -> bool:
        """Put a new worker in place of a lost one; True if it takes the job up again (once)."""
        self._workers.remove(lost)
        fresh = self._spawn_ready()
        self._workers.append(fresh)
        if lost.again:
            return False
        fresh.again = True
        fresh.start(job, lost.speed, slack)
        return True

    def _first_worker(self) -> _Worker:
        """A worker at the level wanted, or for "auto" at the strongest to be had."""
        if self._wanted == "auto":
            levels = LEVELS if self._allow_weak else LEVELS[:-1]
        else:
            levels = (self._wanted,)
        for level in levels:
            self.level = level
            try:
                worker = self._spawn()
                weakness = worker.greet()
                if weakness:
                    self.level_reasons[level] = weakness
                return worker
            except _WorkerFailed as error:
                self.level_reasons[level] = str(error)
        raise AprError(
            f"sandbox: this machine does not give level {self._wanted} ({self.level_reason})",
            "`apr doctor` shows what it gives; --allow-weak-sandbox runs with limits only",
        )

    def _spawn(self) -> _Worker:
        # The processes of a worker take turns, so they share a processor: handing over to one
        # that another processor has to be woken for takes longer than many programs run.
        processors = available_processors()
        processor = processors[(os.getpid() + self._spawned) % len(processors)]
        self._spawned += 1
        order = {
            "level": self.level,
            "preload": list(self._preload),
            "libraries": self._libraries,
            "processor": processor,
        }
        return _Worker(self._python, self._base, order)

    def _fill_up(self) -> None:
        """Replace the workers that an earlier, abandoned iteration cost."""
        while len(self._workers) < self._count:
            self._workers.append(self._spawn_ready())

    def _spawn_ready(self) -> _Worker:
        try:
            worker = self._spawn()
            worker.greet()
            return worker
        except _WorkerFailed as error:
            raise AprError(f"sandbox: a worker did not start: {error}") from None

    def _idle(self) -> _Worker | None:
        return next((worker for worker in self._workers if worker.job is None), None)

    def _ready(self) -> list[_Worker]:
        """Busy workers with something to say; waits until there is one."""
        poll = select.poll()
        busy = {worker.socket.fileno(): worker for worker in self._workers if worker.job}
        for fd in busy:
            poll.register(fd, select.POLLIN)
        return [busy[fd] for fd, _ in poll.poll()] if busy else []

    def _drop_busy(self) -> None:
        for worker in [worker for worker in self._workers if worker.job]:
            self._workers.remove(worker)
            worker.close()

    def _close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []
        if self._base:
            if Path(self._base).exists():  # someone may tidy up /tmp while we run
                remove_tree(self._base)
            os.close(self._hold)
            self._base = ""


def _new_folder() -> tuple[str, int]:
    """A folder for a sandbox, and a descriptor with the lock that tells workers that we live."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX)
        hold = os.open(path, os.O_RDONLY)
        fcntl.flock(hold, fcntl.LOCK_EX)
        if os.path.isdir(path):  # noqa: PTH112
            Path(path).chmod(0o711)  # candidates reach their directories below it
            return path, hold
        os.close(hold)  # swept by another, before it was locked


def _sweep() -> None:
    """Remove folders of sandboxes that were killed before a worker could have done so."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, of another user, or gone
            hold = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(hold).st_uid == os.geteuid():
                    remove_tree(str(path))
            finally:
                os.close(hold)


def available_processors() -> Sequence[int | None]:
    """Processors this process may run on; None for each where they cannot be chosen."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return [None] * (os.cpu_count() or 1)


@dataclass(frozen=True)
class LevelReport:
    """Whether this machine gives a level; if not, `reason` says why."""

    level: Level
    available: bool
    reason: str = ""


def available_levels(python: str | None = None) -> list[LevelReport]:
    """What this machine gives, strongest first; each level is tried out with a program."""
    reports = []
    for level in LEVELS:
        try:
            with Sandbox(1, level, allow_weak=True, python=python, preload=()):
                reports.append(LevelReport(level, True))
        except AprError as error:
            reports.append(LevelReport(level, False, error.message))
    return reports
