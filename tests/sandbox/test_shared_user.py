"""Level confined for a user who owns other files and processes: what Landlock does not refuse.

Under root the programs run as root of a user namespace with one id, which is to the kernel the same
user as outside, without any right.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from apr.sandbox import Sandbox, available_levels

from . import hostile

pytestmark = pytest.mark.skipif(
    "confined" in {r.level for r in available_levels() if not r.available},
    reason="this machine does not give level confined",
)

_CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.{call} < 0: raise OSError(ctypes.get_errno(), 'refused')
"""


def _libc(call: str) -> str:
    return _CALL.format(call=call)


ATTACKS: dict[str, str] = {
    "limits of another process": "import resource\n"
    "resource.prlimit(VICTIM, resource.RLIMIT_CPU, (1, 1))",
    "limits by its group": _libc("prlimit(VICTIM, 7, (ctypes.c_ulong * 2)(9, 9), None)"),
    "priority of another process": "import os\nos.setpriority(os.PRIO_PROCESS, VICTIM, 19)",
    "priority of all of the user": "import os\nos.setpriority(os.PRIO_USER, 0, 19)",
    "processors of another process": "import os\nos.sched_setaffinity(VICTIM, [0])",
    "scheduling of another process": "import os\n"
    "os.sched_setscheduler(VICTIM, os.SCHED_IDLE, os.sched_param(0))",
    "input and output of another": "import platform\n"
    "number = {'x86_64': 251, 'aarch64': 30}[platform.machine()]\n"
    + _libc("syscall(number, 1, VICTIM, 3 << 13)"),
    "a signal": "import os\nos.kill(VICTIM, 9)",
    "a signal to a thread": "import platform\n"
    "number = {'x86_64': 234, 'aarch64': 131}[platform.machine()]\n"
    + _libc("syscall(number, VICTIM, VICTIM, 9)"),
    "a signal by descriptor": "import os, signal\n"
    "signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9)",
    "a signal of a socket": "import fcntl, os, socket\na, b = socket.socketpair()\n"
    "fcntl.fcntl(a, fcntl.F_SETSIG, 9)\nfcntl.fcntl(a, fcntl.F_SETOWN, VICTIM)",
    "extended attributes": "import os\nos.setxattr(OUTSIDE, 'user.mark', b'1')",
    "owner": "import os\nos.chown(OUTSIDE, -1, os.getgid())",
    "a socket that has a path": "import socket\ns = socket.socket(socket.AF_UNIX)\n"
    "s.connect(OUTSIDE + '/stream')",
    "a datagram to a path": "import socket\n"
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.sendto(b'x', OUTSIDE + '/datagrams')",
    "a datagram from a pair": "import socket\n"
    "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "a.sendmsg([b'x'], [], 0, OUTSIDE + '/datagrams')",
    "memory by its number": _libc("shmat(0, None, 0)"),
    "memory taken away": _libc("shmctl(0, 0, None)"),
    "queues by their number": _libc("msgctl(0, 0, None)"),
    "semaphores by their number": _libc("semctl(0, 0, 0)"),
    "memory of another process": "open(f'/proc/{VICTIM}/mem', 'r+b')",
    "environment of another process": "open(f'/proc/{VICTIM}/environ')",
}
SOUND: dict[str, str] = {
    "own limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))\n",
    "own priority": "import os\nos.nice(1)\n",
    "own processors": "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))\n",
    "a pair of sockets": "import socket\na, b = socket.socketpair()\na.send(b'x')\nb.recv(1)\n",
    "copying a file": "import shutil\nopen('a', 'w').close()\nshutil.copy2('a', 'b')\n",
    "asyncio": "import asyncio\nasyncio.run(asyncio.sleep(0))\n",
    "subprocess": "import subprocess\nsubprocess.run(['true'], check=True)\n",
}
_RUN = """
import json, sys
from apr.sandbox import Job, Sandbox
programs, test = json.load(sys.stdin)
with Sandbox(1, "confined") as sandbox:
    jobs = [Job(name, program, test, "add", time_limit=9) for name, program in programs.items()]
    found = {o.job_id: [o.verdict, o.detail] for o in sandbox.run_many(jobs)}
    print(json.dumps([found, sandbox.level_reason]))
"""


_AS_ONE_ID = """
import os, sys
from apr.sandbox.isolation import linux
linux.unshare(linux.CLONE_NEWUSER)
for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def as_one_id(code: str, given: str) -> str:
    """Output of Python code run by the user we are; by root as the only id of a user namespace."""
    enter = ["-c", _AS_ONE_ID, code] if os.geteuid() == 0 else ["-c", code]
    command = [sys.executable, *enter]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, list[str]], str]]:
    """Verdict and detail of each program, and the level's reason."""
    outside = tmp_path_factory.mktemp("outside")
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as victim,
        socket.socket(socket.AF_UNIX) as stream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        stream.bind(str(outside / "stream"))
        stream.listen()
        datagrams.bind(str(outside / "datagrams"))
        told = f"VICTIM = {victim.pid}\nOUTSIDE = {str(outside)!r}\n"
        programs = {n: told + hostile._answers_if(a) for n, a in ATTACKS.items()}
        programs |= {name: program + hostile.RIGHT for name, program in SOUND.items()}
        try:
            yield tuple(json.loads(as_one_id(_RUN, json.dumps([programs, hostile.TEST]))))
            assert victim.poll() is None
            datagrams.setblocking(False)
            with pytest.raises(BlockingIOError):
                datagrams.recv(1)
        finally:
            victim.kill()


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_of_others_is_refused(found: tuple[dict[str, list[str]], str], name: str) -> None:
    verdict, detail = found[0][name]
    assert verdict == "failed", detail
    assert "[Errno 1]" in detail or "[Errno 13]" in detail, detail


@pytest.mark.parametrize("name", SOUND)
def test_what_is_its_own_works(found: tuple[dict[str, list[str]], str], name: str) -> None:
    assert found[0][name][0] == "passed", found[0][name]


def test_the_level_says_what_it_lacks(found: tuple[dict[str, list[str]], str]) -> None:
    assert "may change modes and times of its files" in found[1]


def test_a_user_of_its_own_lacks_nothing() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives programs a user of their own")
    with Sandbox(1, "confined") as sandbox:
        assert sandbox.level_reason == ""
