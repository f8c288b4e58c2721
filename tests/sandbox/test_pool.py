"""The pool: order, laziness, retries, lost workers, leaving early, leaving nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from apr.common.errors import AprError, UsageError
from apr.sandbox import Job, Outcome, Sandbox
from apr.sandbox.isolation import levels
from apr.sandbox.pool import SLACK, _Worker

CHECK = "def check(candidate):\n    assert candidate(2) == 4\n"
GOOD = "def f(x):\n    return x * x\n"
SPIN = "def f(x):\n    while True: pass\n"


def good(name: str) -> Job:
    return Job(name, GOOD, CHECK, "f")


def slow(name: str, seconds: float) -> Job:
    program = f"import time\ndef f(x):\n    time.sleep({seconds})\n    return 4\n"
    return Job(name, program, CHECK, "f", time_limit=60)


def spinning(name: str) -> Job:
    return Job(name, SPIN, CHECK, "f", time_limit=0.3)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(2, allow_weak=True) as opened:
        yield opened


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def workers() -> list[psutil.Process]:
    """Workers of this process, by what only their command lines hold."""
    return [process for process in psutil.Process().children() if is_ours(process)]


def is_ours(process: psutil.Process) -> bool:
    try:
        return any("apr_sandbox" in argument for argument in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def test_every_job_has_one_outcome(sandbox: Sandbox) -> None:
    outcomes = list(sandbox.run_many(good(str(i)) for i in range(20)))
    assert sorted(outcome.job_id for outcome in outcomes) == sorted(map(str, range(20)))
    assert {outcome.verdict for outcome in outcomes} == {"passed"}


def test_a_slow_job_does_not_hold_up_others(sandbox: Sandbox) -> None:
    jobs = [slow("slow", 1.0), *(good(str(i)) for i in range(5))]
    assert [outcome.job_id for outcome in sandbox.run_many(jobs)][-1] == "slow"


def test_jobs_are_taken_as_workers_are_free(sandbox: Sandbox) -> None:
    taken = 0

    def endless() -> Iterator[Job]:
        nonlocal taken
        while True:
            taken += 1
            yield good(str(taken))

    outcomes = sandbox.run_many(endless())
    for number in range(1, 10):
        next(outcomes)
        assert taken <= number + 2
    outcomes.close()  # type: ignore[attr-defined]


def test_programs_have_more_time_beside_others_but_no_second_run(sandbox: Sandbox) -> None:
    jobs = [spinning("spin 1"), spinning("spin 2"), good("good"), slow("slow", 0.5)]
    outcomes = {o.job_id: o for o in sandbox.run_many(jobs)}
    assert {name: (o.verdict, o.detail, o.retried) for name, o in outcomes.items()} == {
        "spin 1": ("timeout", "timed out", False),
        "spin 2": ("timeout", "timed out", False),
        "good": ("passed", "passed", False),
        "slow": ("passed", "passed", False),
    }
    assert all(outcomes[name].cpu_seconds >= 0.2 * SLACK for name in ("spin 1", "spin 2"))


def took(seconds: float) -> str:
    """A program that takes so much processor time."""
    return f"import time\nwhile time.process_time() < {seconds}: pass\n{GOOD}"


def tried(
    monkeypatch: pytest.MonkeyPatch, programs: dict[str, float], speeds: list[float]
) -> tuple[dict[str, Outcome], list[str]]:
    """Outcomes of programs that take so many seconds under a limit of 0.3, and the order of all
    runs. speeds: as measured, one after the other, the last of them from then on.
    """
    measured, ran = iter(speeds), []
    start = _Worker.start

    def started(worker: _Worker, job: Job, speed: float, slack: float, whole: bool = False) -> None:
        ran.append(job.job_id)
        start(worker, job, speed, slack, whole)

    monkeypatch.setattr("apr.sandbox.speed.measured", lambda _: next(measured, speeds[-1]))
    monkeypatch.setattr(_Worker, "start", started)
    monkeypatch.setattr("apr.sandbox.pool._PAUSE", 4.0)
    monkeypatch.setattr("apr.sandbox.pool.time.sleep", lambda _: None)
    jobs = [
        Job(name, took(seconds), CHECK, "f", time_limit=0.3) for name, seconds in programs.items()
    ]
    with Sandbox(1, level="limits", allow_weak=True, preload=()) as sandbox:
        return {o.job_id: o for o in sandbox.run_many(jobs)}, ran


def test_what_comes_near_its_limit_runs_again_alone_and_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, ran = tried(monkeypatch, {"near": 0.23, "over": 0.35, "far": 9, "quick": 0}, [1.0])
    assert {name: (o.verdict, o.retried, o.close) for name, o in found.items()} == {
        "near": ("passed", True, True),
        "over": ("timeout", True, True),
        "far": ("timeout", False, False),
        "quick": ("passed", False, False),
    }
    programs = [name for name in ran if name != "calibration"]
    assert programs == ["near", "over", "far", "quick", "near", "over", "over", "over"]
    assert 0.23 <= found["near"].cpu_seconds < 0.4 and found["near"].share > 2 / 3
    assert found["near"].spent_seconds >= 0.46 and found["over"].spent_seconds >= 1.2


def test_a_slow_machine_gives_more_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    found, ran = tried(monkeypatch, {"a": 0.35}, [2.0])
    assert found["a"].passed and not found["a"].retried and ran == ["calibration", "a"]
    assert 0.5 < found["a"].share < 2 / 3


def test_a_machine_that_became_busy_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run ends too soon; the second comes when all is calm, or late enough."""
    found, ran = tried(monkeypatch, {"a": 0.55}, [1.0, 3.0])
    assert found["a"].passed and found["a"].retried and not found["a"].close
    # At the start; behind what ran out of time; before it runs again, until patience ends.
    assert ran == ["calibration", "a", *["calibration"] * 5, "a"]


def test_a_machine_that_became_calm_takes_nothing_for_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within its limit of the busy time, which is more than it has in the calm one."""
    programs = {"far": 9, "a": 0.45}
    found, _ = tried(monkeypatch, programs, [1.0, 2.0, 2.0, 2.0, 2.0, 1.0])
    assert found["a"].verdict == "timeout" and found["a"].retried


def test_leaving_early_ends_what_runs(sandbox: Sandbox) -> None:
    outcomes = sandbox.run_many([good("first"), slow("never", 60), slow("nor this", 60)])
    assert next(outcomes).job_id == "first"
    outcomes.close()  # type: ignore[attr-defined]
    assert len(workers()) == 1  # the idle one
    assert sandbox.run(good("after")).passed


def test_an_error_among_the_jobs_passes_through(sandbox: Sandbox) -> None:
    def jobs() -> Iterator[Job]:
        yield good("one")
        yield slow("two", 60)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(sandbox.run_many(jobs()))
    assert sandbox.run(good("after")).passed


def test_a_lost_worker_costs_no_job(sandbox: Sandbox) -> None:
    outcomes = sandbox.run_many([good("first"), slow("held up", 1.0)])
    next(outcomes)
    for worker in workers():
        worker.kill()
    rest = list(outcomes)
    assert [(o.job_id, o.verdict) for o in rest] == [("held up", "passed")]


def kill_twice() -> None:
    for _ in range(2):
        time.sleep(1)
        for worker in workers():
            worker.kill()


def test_a_job_that_loses_two_workers(sandbox: Sandbox) -> None:
    killer = threading.Thread(target=kill_twice)
    killer.start()
    (outcome,) = sandbox.run_many([slow("fatal", 30)])
    killer.join()
    assert outcome.verdict == "sandbox-error"
    assert not outcome.passed
    assert "lost a worker" in outcome.detail
    assert sandbox.run(good("after")).passed


def test_nothing_is_left_after_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(psutil.pids())
    with Sandbox(2, allow_weak=True) as sandbox:
        assert sandbox.run(good("one")).passed
        mine = [p for p in psutil.process_iter() if p.pid not in before and is_ours(p)]
        assert len(mine) >= 4
    assert wait_until(lambda: not any(process.is_running() for process in mine))
    assert [*tmp_path.iterdir()] == []


SCRIPT = """
import sys
from apr.sandbox import Job, Sandbox
with Sandbox(2, allow_weak=True) as sandbox:
    jobs = [Job(str(i), "import time\\ndef f():\\n    time.sleep(60)\\n", "f()", "f", time_limit=60)
            for i in range(2)]
    print("ready", flush=True)
    list(sandbox.run_many(jobs))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_interrupted_or_killed(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 6
        process.send_signal(number)
        process.wait(20)
    assert wait_until(lambda: not any(child.is_running() for child in below))
    if number == signal.SIGINT:
        assert [*tmp_path.iterdir()] == []


def test_wrong_use(sandbox: Sandbox) -> None:
    with pytest.raises(UsageError, match="level 'half'"):
        Sandbox(level="half")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="allow-weak"):
        Sandbox(level="limits")
    with pytest.raises(UsageError, match="workers is 0"):
        Sandbox(0)
    with pytest.raises(UsageError, match="not open"):
        Sandbox(allow_weak=True).run(good("x"))
    outcomes = sandbox.run_many([good("a"), good("b")])
    next(outcomes)
    with pytest.raises(UsageError, match="already running"):
        sandbox.run(good("c"))
    outcomes.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("python", "reason"),
    [("/nonexistent/python", "No such file"), ("/bin/false", "it ended with status 1")],
)
def test_an_interpreter_that_is_none(python: str, reason: str) -> None:
    with pytest.raises(AprError, match=reason), Sandbox(1, allow_weak=True, python=python):
        raise AssertionError("it opened")


@pytest.mark.parametrize(
    "change",
    [
        {"time_limit": 0},
        {"memory_bytes": 1},
        {"output_bytes": 0},
        {"processes": 0},
        {"judge": "me"},
        {"entry_point": "not a name"},
        {"files": {"../x": b""}},
    ],
)
def test_impossible_jobs(change: dict[str, object]) -> None:
    fields = {"job_id": "x", "program": "", "test": "", "entry_point": "f", **change}
    with pytest.raises(UsageError, match="job x"):
        Job(**fields)  # type: ignore[arg-type]


def test_another_interpreter() -> None:
    other = "/usr/bin/python3"
    if not Path(other).exists() or Path(other).samefile(sys.executable):
        pytest.skip("no second interpreter here")
    program = "import sys\ndef f():\n    return sys.prefix\n"
    with Sandbox(1, allow_weak=True, python=other) as sandbox:
        outcome = sandbox.run(Job("x", program, "assert f() == '/usr'", "f"))
    assert outcome.passed, outcome


def test_files_lie_in_the_working_directory(sandbox: Sandbox) -> None:
    program = "def f():\n    return open('data.txt', 'rb').read()\n"
    files = {"data.txt": b"\0\xffdata"}
    job = Job("x", program, r"assert f() == b'\0\xffdata'", "f", files=files)
    assert sandbox.run(job).passed
    assert not sandbox.run(Job("x", program, "f()", "f")).passed  # and are gone for the next


def test_folders_of_the_killed_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "apr-sandbox-dead" / "worker" / "job").mkdir(parents=True)
    (tmp_path / "apr-sandbox-file").write_text("somebody's")
    (tmp_path / "apr-sandbox-link").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    with Sandbox(1) as alive:
        here = Path(alive._base)
        with Sandbox(1):
            assert here.is_dir()
            assert not (tmp_path / "apr-sandbox-dead").exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"apr-sandbox-file", "apr-sandbox-link", "other"}


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with (
        pytest.raises(AprError, match=f"cannot write {tmp_path}: No space left") as caught,
        Sandbox(1),
    ):
        raise AssertionError("not reached")
    assert "free some space" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are of Linux")
def test_namespaces_that_are_switched_off_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(flags: int) -> None:
        raise OSError(errno.ENOSPC, "unshare: No space left on device")

    monkeypatch.setattr(levels.linux, "unshare", none_left)
    monkeypatch.setattr(levels.view, "trim_import_path", lambda paths: None)
    with pytest.raises(OSError, match=r"user namespaces are switched off here") as caught:
        levels.prepare("full", "/nowhere")
    assert "No space" not in str(caught.value)


@pytest.mark.parametrize(
    ("mapped", "wanted"),
    [
        ("         0          0 4294967295\n", range(2_000_000_000, 2_100_000_000)),
        ("0 100000 65536\n", range(32768, 65536)),
        ("0 1000 1\n1 100000 65536\n", range(32769, 65537)),
        ("0 1000 1\n", None),
    ],
    ids=["all", "rootless container", "podman", "one"],
)
def test_a_user_to_spare(
    mapped: str, wanted: range | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "map").write_text(mapped)
    opened = open
    monkeypatch.setattr(levels, "open", lambda path: opened(tmp_path / "map"), raising=False)
    found = levels._spare_id("uid_map")
    assert found is None if wanted is None else found in wanted and found + 1 in wanted


def test_a_lost_fork_server_leaves_nothing() -> None:
    """Killed from outside, as the kernel does where memory ends: its children end all the same."""
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(60)\n"
    job = Job("j", program, "assert f(1)", "f", time_limit=1.5)
    outcomes: list[Outcome] = []
    with Sandbox(1, "confined") as sandbox:
        worker = psutil.Process(sandbox._workers[0].pid)
        (server,) = (p for p in worker.children() if p.name() == "apr-sandboxed")
        thread = threading.Thread(target=lambda: outcomes.append(sandbox.run(job)))
        thread.start()
        while len(below := server.children(recursive=True)) < 2:
            time.sleep(0.01)
        server.kill()
        _, alive = psutil.wait_procs([server, *below], 20)
        thread.join()
    assert alive == []
    assert [o.verdict for o in outcomes] == ["timeout"]  # on its second try
