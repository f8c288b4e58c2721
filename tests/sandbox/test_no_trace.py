"""What one program may leave for the next: nothing that the next can see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from apr.sandbox import LEVELS, Job, Sandbox, available_levels
from apr.sandbox.judging.calls import encode, read_answer

UNAVAILABLE = {r.level: r.reason for r in available_levels() if not r.available}

# All that a program can see without asking the kernel for what it counts for the whole machine
# (process numbers outside a namespace, pipes, load) or for the time.
LOOK = """
import fcntl, gc, locale, os, resource, signal, stat, sys, tempfile, threading

def status(found):
    return [found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size]

def descriptors():
    found = {}
    for fd in range(300):
        try:
            about = status(os.fstat(fd))
        except OSError:
            continue
        try:
            about.append(os.lseek(fd, 0, os.SEEK_CUR))
        except OSError as error:
            about.append(error.errno)
        about += [fcntl.fcntl(fd, c) for c in (fcntl.F_GETFD, fcntl.F_GETFL, fcntl.F_GETOWN)]
        found[fd] = about
    return found

def folder(path):
    here = {path: status(os.lstat(path))}
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        return here | {path + " names": error.errno}
    return here | {f"{path}/{name}": status(os.lstat(f"{path}/{name}")) for name in names}

def numbers_of_new_files():
    found = []
    for number in range(3):
        with open(f"new{number}", "w") as file:
            found.append(os.fstat(file.fileno()).st_ino)
        os.unlink(f"new{number}")
    return [n - os.stat(".").st_ino for n in found] + [os.stat(".").st_ino]

def look(with_numbers):
    signals = [str(signal.getsignal(n)) for n in (1, 2, 15, 17, 24)]
    limits = [resource.getrlimit(n) for n in range(16)]
    view = {
        "descriptors": descriptors(),
        "folders": [folder(p) for p in (".", os.path.dirname(os.getcwd()), "/dev", "/etc/passwd")],
        "place": [os.getcwd(), tempfile.gettempdir(), os.path.realpath(".")],
        "environment": dict(os.environ),
        "ids": [os.getuid(), os.getgid(), os.getgroups(), os.getpriority(0, 0)],
        "signals": signals + [sorted(map(str, signal.pthread_sigmask(0, [])))],
        "limits": limits,
        "processors": sorted(os.sched_getaffinity(0)),
        "threads": threading.active_count(),
        "modules": sorted(sys.modules),
        "extended attributes": [os.listxattr(p) for p in (".", os.path.dirname(os.getcwd()))],
        "umask": os.umask(0o22),
        "name": open("/proc/self/comm").read() if os.path.exists("/proc/self/comm") else "",
        "hash": hash("text"),
    }
    if with_numbers:
        view["numbers"] = numbers_of_new_files() + [os.getpid(), os.getppid()]
    return view
"""

# Each tries to leave a mark that LOOK would find.
MARKS = {
    "descriptors": "import os\nfor fd in range(3):\n    for what in (lambda: os.lseek(fd, 5, 0),\n"
    "                 lambda: os.write(fd, b'1' * 97), lambda: os.ftruncate(fd, 33)):\n"
    "        try: what()\n        except OSError: pass\n",
    "flags": "import fcntl, os\nfor fd in range(3):\n"
    "    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)\n"
    "    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())\n",
    "numbers of files": "import os\nfor i in range(777):\n    open('x', 'w').close()\n"
    "    os.unlink('x')\n",
    "files": "import os\nfor path in ('.', '..', '/tmp', '/box', '/dev', '/dev/shm', '/etc'):\n"
    "    for do in (lambda: open(path + '/mark', 'w'), lambda: os.mkdir(path + '/marks'),\n"
    "               lambda: os.symlink('mark', path + '/link')):\n"
    "        try: do()\n        except OSError: pass\n",
    "modes, times and attributes": "import os\nfor path in ('.', '..', '/box', '/tmp'):\n"
    "    for do in (lambda: os.chmod(path, 0o777), lambda: os.utime(path, (5, 5)),\n"
    "               lambda: os.setxattr(path, 'user.mark', b'1')):\n"
    "        try: do()\n        except OSError: pass\n",
    "signals and limits": "import os, resource, signal\nsignal.signal(15, signal.SIG_IGN)\n"
    "signal.pthread_sigmask(0, [1, 2])\nos.nice(5)\nos.umask(0)\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))\n",
    "modules": "import sys, os, json\nsys.modules['mark'] = os\nos.environ['MARK'] = '1'\n"
    "json.dumps = None\n",
    "children": "import os, time\nfor i in range(9):\n    if os.fork() == 0:\n        os.setsid()\n"
    "        time.sleep(100)\n",
}


def job(name: str, program: str, *arguments: Any) -> Job:
    cases = [(encode(arguments), None, 10.0)]
    return Job(name, program, "", "look", judge="calls", cases=lambda: cases, time_limit=10.0)


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param in UNAVAILABLE:
        pytest.skip(f"level {request.param}: {UNAVAILABLE[request.param]}")
    with Sandbox(1, request.param, allow_weak=True) as opened:
        yield opened


def seen(sandbox: Sandbox) -> Any:
    outcome = sandbox.run(job("look", LOOK, sandbox.level == "full"))
    assert outcome.passed, outcome
    ((_, reply),) = outcome.answers
    return read_answer(0.0, reply).value


def test_the_last_program_sees_what_the_first_saw(sandbox: Sandbox) -> None:
    first = seen(sandbox)
    for _ in range(3):
        # Level limits keeps no program from the files of the machine.
        names = [n for n in MARKS if sandbox.level != "limits" or n != "files"]
        marks = [job(name, MARKS[name] + "def look():\n    return 1\n") for name in names]
        assert len(list(sandbox.run_many(marks))) == len(names)
    assert seen(sandbox) == first


NOTE = "the answers of the first sample"
WRITES = f"import os\nfor fd in range(3):\n    os.write(fd, {NOTE!r}.encode())\n"
READS = """
import os
text = b""
for fd in range(300):
    if fd != 3:
        for read in (lambda: os.pread(fd, 1 << 16, 0), lambda: os.read(fd, 1 << 16)):
            try: text += read()
            except OSError: pass
def look():
    return text.decode("latin-1")
"""


def test_descriptors_tell_nothing(sandbox: Sandbox) -> None:
    sandbox.run(job("writes", WRITES + "def look(): pass\n"))
    ((_, reply),) = sandbox.run(job("reads", READS)).answers
    assert read_answer(0.0, reply).value == ""
