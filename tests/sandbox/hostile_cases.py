"""Hostile programs for the judges "stdin" and "functional", as data. As in hostile.py, a program
that gets through what it tries passes. Each has one case: the input is GIVEN, the answer ANSWER.
"""

from __future__ import annotations

from .hostile import Hostile

GIVEN = "[17, 4]"
# Found in the memory or the files of the judge's side, if anywhere.
ANSWER = "the expected output is 8c1f0d9be2"
_WANTED = "('expected output is' + chr(32))"  # the text itself is not in the program
TIMEOUT = frozenset({"timeout"})
NOT_PASSED = frozenset({"failed", "error", "timeout", "memory", "output-limit"})


def _printing(find: str) -> str:
    """Prints ANSWER if `find` puts bytes that hold it into `seen`."""
    return (
        f"import re, os, sys\nseen = b''\nwanted = {_WANTED}.encode()\n"
        f"def search():\n    global seen\n"
        + "".join(f"    {line}\n" for line in find.strip().splitlines())
        + "try:\n    search()\nexcept OSError:\n    pass\n"
        "found = re.search(b'the ' + wanted + rb'[0-9a-f]{10}', seen)\n"
        "print(found[0].decode() if found else 'nothing')\n"
    )


SEARCHES = {
    "in memory": "import gc\nfor thing in gc.get_objects():\n"
    "    for part in gc.get_referents(thing):\n        if type(part) is str:\n"
    "            part = part.encode('utf-8', 'replace')\n"
    "        if type(part) is bytes and wanted in part:\n            seen += part",
    "in files": "for folder, _, names in os.walk('/'):\n"
    "    if folder.startswith(('/usr', '/proc', '/sys', '/lib', '/root', '/opt', '/nix')):\n"
    "        continue\n    for name in names:\n        try:\n"
    "            seen += open(os.path.join(folder, name), 'rb').read(1 << 16)\n"
    "        except OSError:\n            pass",
    "in descriptors": "for fd in range(3, 256):\n    try:\n        os.set_blocking(fd, False)\n"
    "        seen += os.read(fd, 1 << 20)\n    except OSError:\n        pass",
    "in the memory of others": "for pid in [os.getppid(), *range(1, 400)]:\n    try:\n"
    "        for line in open(f'/proc/{pid}/maps'):\n"
    "            if 'rw-p' in line:\n                a, b = (int(x, 16) for x in"
    " line.split()[0].split('-'))\n                memory = open(f'/proc/{pid}/mem', 'rb')\n"
    "                memory.seek(a)\n                seen += memory.read(min(b - a, 1 << 24))\n"
    "    except (OSError, ValueError):\n        pass",
    "in the arguments and environments of others": "for pid in range(1, 400):\n"
    "    for name in ('cmdline', 'environ'):\n        try:\n"
    "            seen += open(f'/proc/{pid}/{name}', 'rb').read()\n"
    "        except OSError:\n            pass",
}

SCRIPTS: tuple[Hostile, ...] = (
    *(Hostile(f"looking {where}", _printing(how)) for where, how in SEARCHES.items()),
    Hostile("exits before it prints", "import os\nos._exit(0)\n", frozenset({"failed"})),
    Hostile(
        "prints without end", "while True: print('x' * 9999)", frozenset({"output-limit", "failed"})
    ),
    Hostile(
        "prints without end, catches everything",
        "while True:\n    try: print('x' * 9999)\n    except BaseException: pass",
        frozenset({"output-limit", "timeout"}),
    ),
    Hostile(
        "complains without end", "import sys\nwhile True: print('x' * 9999, file=sys.stderr)"
    ),
    Hostile("forks without end", "import os\nwhile True:\n    os.fork()"),
    Hostile(
        "children without end",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ),
    Hostile("closes everything", "import os\nos.closerange(0, 256)\nprint(input())"),
    Hostile("closes its streams", "import sys\nsys.stdin.close()\nsys.stdout.close()\nprint(1)"),
    Hostile("loops in C", "(10 ** 9) ** (10 ** 9)", frozenset({"timeout", "memory"})),
    Hostile("iterates in C", "import itertools\nsum(itertools.repeat(0))", TIMEOUT),
    Hostile("waits for itself", "import threading\nthreading.Event().wait()", TIMEOUT),
    Hostile(
        "leaves a thread", "import threading\nthreading.Thread(target=threading.Event().wait)"
        ".start()", TIMEOUT
    ),
    Hostile("loops at the end", "import atexit\n@atexit.register\ndef f():\n  while 1: pass",
            TIMEOUT),
    Hostile(
        "ignores signals and loops",
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        TIMEOUT,
    ),
    Hostile("stops who waits for it", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)"),
    Hostile("kills who waits for it", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"),
    Hostile(
        "fills memory", "x = []\nwhile True: x.append(bytearray(16 << 20))",
        frozenset({"memory", "timeout"}),
    ),
    Hostile(
        "leaves a child that holds its output",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n",
        frozenset({"failed"}),
    ),
    Hostile(
        "forges the report",
        "import os, struct\ndef text(s): return b's' + struct.pack('<I', len(s)) + s\n"
        "def blob(s): return b'b' + struct.pack('<I', len(s)) + s\n"
        "payload = (b'D' + struct.pack('<I', 3) + b'*' + text(b'status') + text(b'output')"
        " + text(b'errors') + struct.pack('<I', 3) + b'*' + b'i\\1\\0\\0\\0\\0' + blob(b'x')"
        " + blob(b''))\n"
        "for fd in range(3, 256):\n    try: os.write(fd, struct.pack('<I', len(payload)) + payload)"
        "\n    except OSError: pass\n",
        frozenset({"failed"}),
    ),
    Hostile("writes to its input", "import os\nos.write(0, b'x')\n", frozenset({"failed"})),
    Hostile("deletes its folder", "import os, shutil\nshutil.rmtree(os.getcwd())\n"),
)  # fmt: skip

# Sound programs that echo their input, however oddly. All must pass.
ECHOES: dict[str, str] = {
    "plain": "print(input())",
    "buffers": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())",
    "descriptors": "import os\nos.write(1, os.read(0, 99))",
    "files": "open(1, 'w').write(open(0).read())",
    "as much as there is": "import os\nprint(os.read(0, os.fstat(0).st_size).decode())",
    "hard exit": "import os\nprint(input(), flush=True)\nos._exit(0)",
    "thread": "import threading, time\ndef f():\n    time.sleep(0.05)\n    print(input())\n"
    "threading.Thread(target=f).start()",
    "large stack": "import threading, sys\nsys.setrecursionlimit(10 ** 6)\n"
    "threading.stack_size(1 << 27)\nthreading.Thread(target=lambda: print(input())).start()",
    "exit handler": "import atexit\natexit.register(lambda: print(input()))",
    "child": "import os\nif os.fork() == 0:\n    print(input(), flush=True)\n    os._exit(0)\n"
    "os.wait()",
    "child that stays": "import os, time\nprint(input(), flush=True)\nif os.fork() == 0:\n"
    "    os.setsid()\n    time.sleep(600)",
    "subprocess": "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', 'print(input())'], check=True)",
    "files of its own": "with open('a', 'w') as f: f.write(input())\nprint(open('a').read())",
    "main module": "import __main__\nx = input()\nprint(__main__.x)",
    "data class": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'str'\n"
    "print(A(input()).x)",
    "pickled class": "import pickle\nclass A: pass\na = A()\na.x = input()\n"
    "print(pickle.loads(pickle.dumps(a)).x)",
    "own errors": "import sys\nprint('Traceback: Error', file=sys.stderr)\nprint(input())",
    "closed input": "import sys\nx = input()\nsys.stdin.close()\nprint(x)",
    "exit status": "import sys\nprint(input())\nsys.exit(1)",
}
