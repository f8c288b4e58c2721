"""Programs whose ending, files or words trouble those who judge them, for `add(a, b)`.

Each gets a verdict of its own, at every level and in every style, and stops nobody else.
"""

from __future__ import annotations

WRONG = "def add(a, b):\n    return None\n"

ENDINGS: dict[str, str] = {
    **{
        f"signal {number}": f"import os\nos.kill(os.getpid(), {number})\n" + WRONG
        for number in (6, 19, 24, 31, 32, 34, 40, 63, 64)
    },
    "a real-time signal when called": "import signal\ndef add(a, b):\n"
    "    signal.raise_signal(39)\n",
    "an unusual exit status": "import os\nos._exit(255)\n",
    "exit in a thread": "import os, threading\nthreading.Thread(target=os._exit, args=(77,))"
    ".start()\n" + WRONG,
    "another program in its place": "import os\nos.execv('/bin/true', ['true'])\n",
    "a child that ends by a signal": "import os\nif os.fork() == 0:\n    os.kill(os.getpid(), 50)\n"
    "os.wait()\n" + WRONG,
}

FILES: dict[str, str] = {
    "names that its cleaner may use": "import os\nhere = os.path.basename(os.getcwd())\n"
    "for i in range(40):\n    for path in (f'../{here}.{i}/x/y', f'{here}.{i}/x/y', f'd/{i}/x',\n"
    "                 f'../{i}/x', f'{here}.{i}.{i}/d.{i}/x'):\n"
    "        try: os.makedirs(path)\n        except OSError: pass\n" + WRONG,
    "the longest names": "import os\nfor i in range(20):\n"
    "    try: os.makedirs(f'{i:03}' * 85 + '/' + 'y' * 255)\n    except OSError: break\n" + WRONG,
    "many folders": "import os\nfor i in range(500):\n"
    "    try: os.makedirs(f'd{i % 9}/e{i}')\n    except OSError: break\n" + WRONG,
    "a folder in a folder in a folder": "import os\nfor i in range(99):\n    try:\n"
    "        os.mkdir('d' * 99); os.chdir('d' * 99)\n    except OSError: break\n" + WRONG,
    "folders nobody may enter": "import os\nos.makedirs('a/b/c')\nopen('a/b/c/f', 'w')\n"
    "for name in ('a/b/c', 'a/b', 'a', '.'): os.chmod(name, 0)\n" + WRONG,
    "names that are no text": "import os\nopen(b'\\xff\\n\\x1b[31m', 'w')\n"
    "os.mkdir(b'\\xed\\xa0\\x80')\n" + WRONG,
    "its folder moved away": "import os\ntry: os.rename(os.getcwd(), '../elsewhere')\n"
    "except OSError: pass\n" + WRONG,
}


def _raising(error: str) -> str:
    return f"def add(a, b):\n    raise {error}\n"


WORDS: dict[str, str] = {
    "half a character": _raising(r"ValueError('\ud800')"),
    "a class named by half a character": _raising(r"type('\ud800', (Exception,), {})('x')"),
    "marks of a table": _raising("ValueError('[/red] [bold] :smile: [link=x]')"),
    "commands to a terminal": _raising(r"ValueError('\x1b]0;title\x07\x1b[2J\x9b31m\r\b')"),
    "a message without end": _raising("ValueError('x' * (60 << 20))"),
    "a class's name without end": _raising("type('x' * (50 << 20), (Exception,), {})"),
    "an answer without end": "def add(a, b):\n    return 'x' * (60 << 20)\n",
    "an answer of half characters": "def add(a, b):\n    return '\\ud800' * 9999\n",
    "a name that is a message": "passed = 1\ndef add(a, b):\n"
    "    raise SystemExit('passed\\npassed')\n",
    "zeros": _raising(r"ValueError('\0' * 99)"),
}
