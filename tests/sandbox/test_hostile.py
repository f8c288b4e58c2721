"""Hostile programs at every level this machine offers; what they leave behind; sound programs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from apr.sandbox import LEVELS, Job, Level, Outcome, Sandbox, available_levels

from . import hostile

MIB = 1 << 20
UNAVAILABLE = {r.level: r.reason for r in available_levels() if not r.available}


@dataclass(frozen=True)
class Aftermath:
    outcomes: dict[str, Outcome]
    processes: list[str]
    files: list[str]
    outside: list[str]
    secret: str
    connections: int
    shared_memory: set[str]


def shared_memory() -> set[str]:
    table = Path("/proc/sysvipc/shm")
    return set(table.read_text().splitlines()[1:]) if table.exists() else set()


def processes_of(python: Path) -> list[str]:
    """Processes whose first argument is `python`: forks keep it, so none can hide."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if (process.info["cmdline"] or [""])[0] == str(python):
            found.append(f"{process.pid} {process.info['status']}")
    return found


@pytest.fixture(scope="module", params=LEVELS)
def aftermath(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Aftermath:
    """Every program run once, then what is left of it."""
    level: Level = request.param
    if level in UNAVAILABLE:
        pytest.skip(f"level {level}: {UNAVAILABLE[level]}")
    folder = tmp_path_factory.mktemp("host")
    outside, work = folder / "outside", folder / "work"
    outside.mkdir(mode=0o700)
    work.mkdir(mode=0o711)
    for parent in list(folder.parents)[:2]:  # pytest's are for their owner only
        parent.chmod(0o711)
    folder.chmod(0o711)
    secret = outside / "secret"
    secret.write_text("a secret")
    secret.chmod(0o600)
    python = folder / "python3"
    python.symlink_to(os.path.realpath(sys.executable))
    before = shared_memory()
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as tcp:
        port = tcp.getsockname()[1]
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", port))
        patch.setenv("APR_TEST_SECRET", "swordfish")
        patch.setattr(tempfile, "tempdir", str(work))
        names = f"OUTSIDE = {str(outside)!r}\nSECRET_FILE = {str(secret)!r}\nPORT = {port}\n"
        jobs = [
            Job(
                item.name,
                names + item.program,
                hostile.TEST,
                "add",
                time_limit=0.5,
                memory_bytes=512 * MIB,
                output_bytes=16 * MIB,
            )
            for item in hostile.PROGRAMS
            if level in item.levels
        ]
        with Sandbox(2, level, allow_weak=True, python=str(python)) as sandbox:
            outcomes = {outcome.job_id: outcome for outcome in sandbox.run_many(jobs)}
        connections = 0
        for listener in (tcp, udp):
            listener.setblocking(False)
            try:
                listener.accept() if listener is tcp else listener.recv(1)
                connections += 1
            except BlockingIOError:
                continue
        udp.close()
    return Aftermath(
        outcomes,
        processes_of(python),
        sorted(path.name for path in work.iterdir()),
        sorted(path.name for path in outside.iterdir()),
        secret.read_text(),
        connections,
        shared_memory() - before,
    )


@pytest.mark.parametrize("item", hostile.PROGRAMS, ids=lambda item: item.name)
def test_does_not_pass(item: hostile.Hostile, aftermath: Aftermath) -> None:
    outcome = aftermath.outcomes.get(item.name)
    if outcome is None:
        pytest.skip("not promised at this level")
    assert outcome.verdict in item.verdicts, outcome


def test_nothing_is_left(aftermath: Aftermath) -> None:
    assert aftermath.processes == []
    assert aftermath.files == []
    assert aftermath.outside == ["secret"]
    assert aftermath.secret == "a secret"
    assert aftermath.connections == 0
    assert aftermath.shared_memory == set()
    assert not (Path(os.__file__).parent / "apr_was_here.py").exists()


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param in UNAVAILABLE:
        pytest.skip(f"level {request.param}: {UNAVAILABLE[request.param]}")
    with Sandbox(2, request.param, allow_weak=True) as opened:
        yield opened


def test_sound_programs_pass(sandbox: Sandbox) -> None:
    jobs = [
        Job(name, program, hostile.TEST, "add", time_limit=10)
        for name, program in hostile.CONTROLS.items()
    ]
    outcomes = {outcome.job_id: outcome for outcome in sandbox.run_many(jobs)}
    assert set(outcomes) == set(hostile.CONTROLS)
    assert [outcome for outcome in outcomes.values() if not outcome.passed] == []
    assert {outcome.level for outcome in outcomes.values()} == {sandbox.level}


def test_hostile_programs_do_not_spoil_the_next(sandbox: Sandbox) -> None:
    """One worker's processes see them in turn; sound programs in between still pass."""
    names = ["patched builtins", "hard exit", "forging verdicts", "tracing", "patched channel"]
    programs = {item.name: item.program for item in hostile.PROGRAMS}
    for name in names:
        bad = Job(name, programs[name], hostile.TEST, "add")
        good = Job("good", hostile.RIGHT, hostile.TEST, "add")
        verdicts = {o.job_id: o.passed for o in sandbox.run_many([bad, good, bad, good])}
        assert verdicts == {name: False, "good": True}


NAIVELY_PASSING = (
    *("an always-equal object", "an always-equal int", "an always-equal str"),
    *("an always-equal list", "an always-equal class", "an always-equal mock", "importing apr"),
    *("exit with success", "exit with success when called", "hard exit", "hard exit when called"),
    *("listening", "UDP", "ptrace", "namespaces of its own", "importing the tests"),
)


@pytest.mark.parametrize("name", NAIVELY_PASSING)
def test_programs_are_dangerous(name: str) -> None:
    """Without a sandbox these do what they mean to: the table is not made of harmless ones."""
    if name in ("ptrace", "namespaces of its own") and os.geteuid() != 0:
        pytest.skip("needs root without a sandbox")
    program = next(item.program for item in hostile.PROGRAMS if item.name == name)
    whole = f"PORT = 9\n{program}\n{hostile.TEST}\ncheck(add)\n"
    script = "import os, signal, sys\nsignal.alarm(10)\n" + (f"exec({whole!r}, {{}})\nos._exit(0)")
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        code = process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # "listening" leaves a child
    assert code == 0


@pytest.mark.parametrize(
    "test",
    [
        "def check(candidate:",
        "def check(candidate):\n    candidate(lambda: 1, 2)\n",
        "def check(candidate):\n    assert candidate(object(), 2)\n",
    ],
)
def test_a_faulty_test_is_nobodys_failure(test: str) -> None:
    with Sandbox(1) as sandbox:
        assert sandbox.run(Job("j", hostile.RIGHT, test, "add")).verdict == "sandbox-error"
        faulty = Job("j", hostile.RIGHT, hostile.TEST, "add", trusted_prefix="1 / 0")
        assert sandbox.run(faulty).verdict == "sandbox-error"


def test_in_process_judge_allows_live_objects() -> None:
    test = "def check(candidate):\n    assert candidate(lambda: 41)() == 42\n"
    program = "def f(g):\n    return lambda: g() + 1\n"
    with Sandbox(1) as sandbox:
        assert sandbox.run(Job("j", program, test, "f", judge="in-process")).passed


@pytest.mark.parametrize("level", [level for level in LEVELS if level not in UNAVAILABLE])
def test_killing_the_user_of_the_sandbox_ends_everything(level: str, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.symlink_to(os.path.realpath(sys.executable))
    script = f"""
import sys
sys.path[:] = {sys.path!r}
from apr.sandbox import Job, Sandbox
with Sandbox(2, {level!r}, allow_weak=True, python={str(python)!r}) as sandbox:
    spin = "import os\\nos.fork()\\nwhile True: pass"
    jobs = [Job(str(i), spin, "", "f", time_limit=600) for i in range(2)]
    list(sandbox.run_many(jobs))
"""
    with psutil.Popen([sys.executable, "-c", script], env={"TMPDIR": str(tmp_path)}) as process:
        while len(processes_of(python)) < 6:  # two workers, two zygotes, two candidates
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    deadline = time.monotonic() + 20
    while processes_of(python) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(python) == []
    assert [path.name for path in tmp_path.iterdir()] == ["python3"]
