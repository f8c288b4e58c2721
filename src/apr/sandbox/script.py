"""The candidate's process for judge "stdin": one run of a program as a script.

The process that holds the socket runs nothing untrusted. It forks one that has the three
standard descriptors and no other, as `python solution.py < stdin > stdout` has, waits for it and
sends what it wrote.
"""

# ruff: noqa: PTH108
from __future__ import annotations

import builtins
import os
import sys
import traceback
import types
from typing import Any, NoReturn

from . import channel

ERRORS_KEPT = 4000  # bytes of standard error, from its end
_NAME = "solution.py"


def run(fd: int, order: dict[str, Any], room: int) -> NoReturn:
    """Run the program of `order` once and report over socket `fd`.

    order: program, prelude (run before it in its namespace), input (text). room: bytes of output
    that are read. Message out: {"status": wait status, "output": bytes, "errors": bytes}.
    """
    os.close(_file("stdin", order["input"].encode("utf-8", "surrogatepass")))
    given = os.open("stdin", os.O_RDONLY)  # the name stays, for programs that open /dev/stdin
    output, errors = _file("stdout"), _file("stderr")
    for name in ("stdout", "stderr"):
        os.unlink(name)
    pid = os.fork()
    if pid == 0:
        try:
            for number, file in enumerate((given, output, errors)):
                os.dup2(file, number)
            os.closerange(fd, max(given, output, errors) + 1)
            _become_script(order["prelude"], order["program"])
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    end = os.fstat(errors).st_size
    report = {
        "status": status,
        "output": _read(output, 0, room),
        "errors": _read(errors, max(0, end - ERRORS_KEPT), ERRORS_KEPT),
    }
    channel.send(fd, report)
    os._exit(0)


def _file(name: str, content: bytes = b"") -> int:
    """A new file of the working directory, open for reading and writing."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    at = 0
    while at < len(content):
        at += os.write(fd, content[at:])
    return fd


def _read(fd: int, at: int, count: int) -> bytes:
    """Up to `count` bytes of a file, wherever those who write to it are."""
    parts = []
    while count > 0 and (part := os.pread(fd, min(count, 1 << 20), at)):
        parts.append(part)
        at += len(part)
        count -= len(part)
    return b"".join(parts)


def _become_script(prelude: str, program: str) -> NoReturn:
    """Run `program` as __main__ with fresh standard streams, then end as an interpreter ends.

    SystemExit is a regular end, whatever its code; another exception prints a traceback and ends
    with status 1.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = [_NAME]
    sys.stdin = sys.__stdin__ = _stream(0, "r", "surrogateescape")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w", "surrogateescape")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "w", "backslashreplace")  # type: ignore[misc]
    sys.stderr.reconfigure(line_buffering=True)
    namespace = main.__dict__
    namespace.update(__file__=_NAME, __builtins__=builtins)
    status = 0
    try:
        for source in (prelude, program):
            exec(compile(source, _NAME, "exec", dont_inherit=True), namespace)
    except SystemExit:
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        _shut_down()
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def _stream(fd: int, mode: str, errors: str) -> Any:
    return open(fd, mode, encoding="utf-8", errors=errors, newline="\n", closefd=False)


def _shut_down() -> None:
    """What a program may leave to the end: its threads, exit handlers, buffered output."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
