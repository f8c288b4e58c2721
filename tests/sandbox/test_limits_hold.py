"""Programs that hide what they use: time, memory and disk count whoever uses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from apr.sandbox import LEVELS, Job, Sandbox, available_levels
from apr.sandbox.watch import Line, Queue

from . import hostile

MIB = 1 << 20
LIMIT = 0.5
UNAVAILABLE = {r.level: r.reason for r in available_levels() if not r.available}

_BURN = """
import os, signal, threading, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def child(seconds):
    pid = os.fork()
    if pid == 0:
        burn(seconds)
        os._exit(0)
    return pid
"""
_THEN_SLEEP = "\ntime.sleep(20)\n" + hostile.RIGHT

TIME: dict[str, str] = {
    "children stand in line, then it sleeps": "for pid in [child(0.04) for i in range(8)]:\n"
    "    os.waitpid(pid, 0)",
    "children that are never waited for, then it sleeps": "for i in range(8): child(0.04)",
    "orphans stand in line, then it sleeps": "for i in range(8):\n    if os.fork() == 0:\n"
    "        child(0.04)\n        os._exit(0)\n    os.wait()",
    "threads stand in line, then it sleeps": "threads = [threading.Thread(target=burn, args=(0.05,"
    ")) for i in range(8)]\nfor t in threads: t.start()\nfor t in threads: t.join()",
    "a polite child stands in line, then it sleeps": "polite = os.fork()\nif polite == 0:\n"
    "    os.nice(19)\n    while True: pass\nburn(0.3)\nos.kill(polite, 9)\nos.waitpid(polite, 0)",
    "children that ignore their children": "try: signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "except OSError: pass\nfor i in range(200): child(0.03); child(0.03); child(0.03)\n",
    "one child after the other": "for i in range(200): os.waitpid(child(0.03), 0)",
    "orphans burn while it sleeps": "for i in range(3):\n    if os.fork() == 0:\n"
    "        child(9)\n        os._exit(0)\n    os.wait()",
    "all processors at once": "try: os.sched_setaffinity(0, range(os.cpu_count()))\n"
    "except OSError: pass\nfor i in range(4): child(9)",
    "a child made its sibling": "import ctypes, platform\n"
    "number = {'x86_64': 56, 'aarch64': 220}[platform.machine()]\n"
    "if ctypes.CDLL(None).syscall(number, 0x8000 | 17, 0, 0, 0, 0) == 0:\n    burn(9)\n"
    "    os._exit(0)",
    "waking again and again": "for i in range(4000):\n    burn(0.0005)\n    time.sleep(0.01)",
}

_KEEP = "\nimport time\ntime.sleep(9)\n"
_ORPHAN = (
    "import os, time\nfor i in range(4):\n    if os.fork() == 0:\n        if os.fork() == 0:\n"
)
USAGE: dict[str, tuple[str, tuple[str, ...]]] = {
    "memory of orphans": (
        _ORPHAN + "            x = b'x' * (80 << 20)\n            time.sleep(99)\n"
        "        os._exit(0)\n    os.wait()" + _KEEP,
        ("memory",),
    ),
    "memory shared with a child": (
        "import mmap, os\nx = mmap.mmap(-1, 150 << 20)\nx.write(b'x' * (150 << 20))\nos.fork()"
        + _KEEP,
        ("memory",),
    ),
    "files in memory": (
        "import os\nfds = []\nfor i in range(40):\n    fds.append(os.memfd_create('x'))\n"
        "    os.write(fds[-1], b'x' * (8 << 20))" + _KEEP,
        ("failed",),
    ),
    "files without a name": (
        "import os\nfds = []\nfor i in range(12):\n"
        "    fds.append(os.open('x', os.O_RDWR | os.O_CREAT))\n"
        "    os.unlink('x')\n    os.write(fds[-1], b'x' * (3 << 20))" + _KEEP,
        ("output-limit", "failed"),
    ),
    "files below the deepest folder": (
        "import os\nfor i in range(60):\n    os.mkdir('d' * 99)\n    os.chdir('d' * 99)\n"
        "for i in range(12): open(f'{i}', 'wb').write(b'x' * (3 << 20))" + _KEEP,
        ("output-limit", "failed"),
    ),
    "files made and linked anew": (
        "import os\nopen('a', 'wb').write(b'x' * (3 << 20))\nfor i in range(12):\n"
        "    open(f'{i}', 'wb').write(b'x' * (3 << 20))\n    os.rename(f'{i}', f'.{i}')" + _KEEP,
        ("output-limit", "failed"),
    ),
}


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param in UNAVAILABLE:
        pytest.skip(f"level {request.param}: {UNAVAILABLE[request.param]}")
    with Sandbox(2, request.param, allow_weak=True) as opened:
        yield opened


@pytest.mark.parametrize("name", TIME)
def test_time(sandbox: Sandbox, name: str) -> None:
    if sandbox.level == "limits" and name == "children that ignore their children":
        pytest.skip("nothing at this level keeps them from it")
    job = Job(name, _BURN + TIME[name] + _THEN_SLEEP, hostile.TEST, "add", time_limit=LIMIT)
    outcome = sandbox.run(job)
    assert outcome.verdict == "timeout", outcome
    # An idle machine needs no more than the limit and a third; a busy one is waited for.
    assert outcome.cpu_seconds < 4 * LIMIT * outcome.speed, outcome


@pytest.mark.parametrize("name", USAGE)
def test_memory_and_disk(sandbox: Sandbox, name: str) -> None:
    program, verdicts = USAGE[name]
    if sandbox.level == "limits" and name == "files in memory":
        pytest.skip("nothing at this level refuses them")
    job = Job(name, program + hostile.RIGHT, hostile.TEST, "add", time_limit=3)
    job = replace(job, memory_bytes=256 * MIB, output_bytes=24 * MIB)
    outcome = sandbox.run(job)
    assert outcome.verdict in verdicts, outcome


def test_time_in_line_is_credit() -> None:
    queue = Queue()
    queue.look({1: Line(0.0, 0.1)}, 0.1)
    queue.look({1: Line(0.5, 0.2)}, 0.2)  # others of the machine ran
    assert queue.seconds == pytest.approx(0.5)


def test_its_own_processes_are_no_reason() -> None:
    queue = Queue()
    for step in range(1, 11):  # eight share a processor for a second
        ran = 0.1 * step / 8
        lines = {pid: Line(0.1 * step - ran, ran) for pid in range(8)}
        queue.look(lines, 8 * ran)
    assert queue.seconds == pytest.approx(0.0, abs=1e-9)


def test_of_those_in_line_the_longest_counts() -> None:
    queue = Queue()
    queue.look({1: Line(0.0, 0.0), 2: Line(0.0, 0.0)}, 0.0)
    queue.look({1: Line(0.3, 0.0), 2: Line(0.4, 0.0)}, 0.0)
    assert queue.seconds == pytest.approx(0.4)


def test_a_wait_that_is_told_late() -> None:
    """One that stood in line while its kin ran learns of it when they have ended."""
    queue = Queue()
    for step in range(6):
        queue.look({1: Line(0.0, 0.0), 2: Line(0.0, 0.1 * step)}, 0.1 * step)
    queue.look({1: Line(0.5, 0.0)}, 0.5)
    assert queue.seconds == pytest.approx(0.0, abs=1e-9)


def test_a_number_used_again() -> None:
    queue = Queue()
    queue.look({1: Line(0.5, 0.0)}, 0.0)
    queue.look({1: Line(0.1, 0.0)}, 0.0)
    assert queue.seconds == pytest.approx(0.6)
