"""The candidate's process: runs the untrusted program and answers the judge's calls.

Everything here is at the program's mercy, so nothing here decides anything. What is sent is
plain data or a handle; the judge takes it as the program's answer, whoever wrote it. Only
`inside` and `unittest_run` are different: there the test runs beside the program.
"""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from . import channel, codec, extensions, inside, script, unittest_run
from .stdio import Sink, silence

_BUILTIN_ERRORS = {
    value: name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "iter": iter,
    "next": next,
    "attribute": getattr,
    "bool": bool,  # the judge's last question: still there?
    "equal": lambda a, b: bool(a == b),
    "str": str,
    "repr": repr,
}
MAX_REQUEST = 1 << 30
FLUSH_EVERY = 0.005  # seconds that answers to many calls may wait for company
FLUSH_BYTES = 1 << 16
MAX_TEXT = 10_000
_TOO_MUCH = bytearray(b"o")


def run(fd: int, output_bytes: int) -> None:
    """Receive one program over socket `fd`, run it and serve its judge until the socket closes.

    Messages: out {"confined": True}; in the order {"program", "prelude", "entry_point", "names",
    "inside", "unittest"}; out ("ready", those of names that the program defines) or an error
    reply; then requests (operation, args, kwargs) and replies. An order with "script" goes to
    script.run.
    """
    own_pid = os.getpid()
    channel.send(fd, {"confined": True})
    order = channel.receive_trusted(fd, MAX_REQUEST)
    if "script" in order:
        script.run(fd, order, output_bytes)
    sink = silence(output_bytes)
    original = inside.fingerprint() if order["inside"] else {}
    tests = unittest_run.Runner(fd, order["entry_point"], sink) if order["unittest"] else None
    namespace: dict[str, Any] = tests.namespace if tests else {}
    try:
        for source in (order["prelude"], order["program"]):
            exec(compile(source, "<string>", "exec", dont_inherit=True), namespace)
    except BaseException as error:
        if os.getpid() == own_pid:
            channel.send_frame(fd, _TOO_MUCH if sink.full else _error_reply(codec.Encoder(), error))
        os._exit(0)
    if os.getpid() != own_pid:
        os._exit(0)  # a process that the program forked and let run on
    if order["inside"]:
        inside.run_check(fd, namespace, order["entry_point"], original, sink)
        os._exit(0)
    if tests:
        tests.run()
    channel.send(fd, ("ready", [name for name in order["names"] if name in namespace]))
    _serve(fd, own_pid, namespace, order["entry_point"], sink, output_bytes)


def _serve(
    fd: int,
    own_pid: int,
    namespace: dict[str, Any],
    entry_point: str,
    sink: Sink,
    output_bytes: int,
) -> None:
    handles: list[Any] = []
    # Looked up once, as check(name) does, whatever the program binds to the name later.
    entry: Any = namespace.get(entry_point)

    def take(name: str, contents: Any) -> Any:
        return handles[contents] if name == "handle" else extensions.build(name, contents)

    def give(encoder: codec.Encoder, value: Any) -> None:
        export(encoder, value, handles)

    while True:
        try:
            frame = channel.receive_frame(fd, MAX_REQUEST)
        except channel.Closed:
            os._exit(0)
        request = codec.Decoder(frame, extend=take)
        operation, args, kwargs = request.value()
        if operation == "many":
            many = _Many(fd, own_pid, sink, output_bytes)
            many.serve(entry, *args)
            continue
        encoder = codec.Encoder(known=request.containers, extend=give)
        try:
            function = entry if operation == "entry" else _OPERATIONS[operation]
            result = function(*args, **dict(kwargs))
            encoder.out += b"v"
            for container in request.containers:
                encoder.contents(container)
            encoder.value(result)
            reply = encoder.out
        except BaseException as error:
            fresh = codec.Encoder(known=request.containers, extend=give)
            reply = _error_reply(fresh, error)
        if sink.full or len(reply) > output_bytes:
            reply = _TOO_MUCH
        if os.getpid() != own_pid:
            os._exit(0)
        channel.send_frame(fd, reply)


class _Many:
    """Answers to many calls of one function, sent a few at a time."""

    def __init__(self, fd: int, own_pid: int, sink: Sink, output_bytes: int) -> None:
        self._fd, self._own_pid, self._sink, self._limit = fd, own_pid, sink, output_bytes
        self._seconds: list[float] = []
        self._replies: list[bytes] = []
        self._held = 0

    def serve(
        self,
        function: Any,
        calls: list[bytes],
        go_on: bool,
        told_before: list[int],
        digest_from: int | None,
    ) -> None:
        """Seconds and a reply for each call. go_on: also after a call that raised. told_before:
        calls before which all answers are sent. digest_from: bytes of a reply from which on its
        digest is sent.
        """
        flushed = time.monotonic()
        pauses = set(told_before)
        for number, call in enumerate(calls):
            if number in pauses:
                self._flush()
            args = codec.Decoder(call, extend=extensions.build).value()
            begin = time.process_time()
            try:
                result = function(*args)
                encoder = codec.Encoder(extend=_opaque)
                encoder.out += b"v"
                encoder.value(extensions.digest(result) or result)
                reply, raised = encoder.out, False
            except BaseException as error:
                reply, raised = _error_reply(codec.Encoder(extend=_opaque), error), True
            seconds = time.process_time() - begin  # with the writing, which is timed as well
            too_much = self._sink.full or len(reply) > self._limit
            if too_much:
                reply = _TOO_MUCH
            elif digest_from is not None and len(reply) >= digest_from and not raised:
                reply = bytearray(b"h" + sha256(reply).digest())
            self._seconds.append(seconds)
            self._replies.append(bytes(reply))
            self._held += len(reply)
            if too_much or (raised and not go_on):
                break
            now = time.monotonic()
            if self._held > FLUSH_BYTES or now - flushed > FLUSH_EVERY:
                self._flush()
                flushed = now
        self._flush()

    def _flush(self) -> None:
        if not self._seconds:
            return
        if os.getpid() != self._own_pid:
            os._exit(0)
        channel.send(self._fd, (self._seconds, self._replies))
        self._seconds, self._replies, self._held = [], [], 0


def _opaque(encoder: codec.Encoder, value: Any) -> None:
    """Write a value that is not plain data: as its contents, or the name of its type."""
    export(encoder, value, None)


def _error_reply(encoder: codec.Encoder, error: BaseException) -> bytearray:
    """`e`, the contents of the known containers, (nearest built-in class, class, args, text)."""
    known = list(encoder.containers)
    encoder.out += b"e"
    for container in known:
        encoder.contents(container)
    base = next(cls for cls in type(error).__mro__ if cls in _BUILTIN_ERRORS)
    try:
        text = str(error)[:MAX_TEXT]
    except Exception as nested:
        text = f"<{type(nested).__name__} in str()>"
    args = error.args if all(type(arg) in (str, int, float, bool) for arg in error.args) else None
    if args is not None and any(type(arg) is str and len(arg) > MAX_TEXT for arg in args):
        args = None
    encoder.value((_BUILTIN_ERRORS[base], type(error).__name__, args, text))
    return encoder.out


# Values that are not plain data. ---------------------------------------------------------------

_BASES = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
_TO_BASE: dict[type, Callable[[Any], Any]] = {
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    bytearray: lambda value: bytearray.__getitem__(value, slice(None)),
    list: lambda value: list.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    dict: lambda value: dict(dict.items(value)),
    set: set.copy,
    frozenset: frozenset.copy,
}


def export(encoder: codec.Encoder, value: Any, handles: list[Any] | None) -> None:
    """Write a value that is not plain data, so that the judge's == gives what == gives here.

    Known library types travel as their contents, an object of a subclass of a built-in type as
    that type (what such a class says about equality is left behind), everything else as a
    handle, which equals nothing but itself; without handles, as the name of its type.
    """
    if extensions.write(encoder, value):
        return
    for base in _BASES:
        if isinstance(value, base):
            encoder.value(_TO_BASE[base](value))
            return
    if handles is None:
        encoder.extension("opaque", type(value).__name__)
        return
    number = next((i for i, known in enumerate(handles) if known is value), len(handles))
    if number == len(handles):
        handles.append(value)
    encoder.extension("handle", number)
