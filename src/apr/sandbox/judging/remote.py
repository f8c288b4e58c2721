"""The judge's side of a candidate: its function as a proxy, its answers as trusted objects."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .. import channel, codec, extensions

MAX_MESSAGE = 64 << 20


class CandidateGone(BaseException):
    """The candidate's process ended, or sent what no reply looks like."""


class TooMuchOutput(BaseException):
    """An answer larger than the job allows."""


class SetupFailed(Exception):
    """Nothing was judged: no confinement, or a test that is itself at fault."""


class TestNeedsInside(BaseException):
    """The test hands the candidate something that is not plain data."""


class _Raised(NamedTuple):
    """A reply that is an exception (a value of its own: the reader's errors mean other things)."""

    error: BaseException


class Candidate:
    """Calls the candidate's process over socket `fd`; replies of at most `limit` bytes.

    `broken` keeps the first failure of the connection, in case the test swallows it.
    """

    def __init__(self, fd: int, limit: int) -> None:
        self._fd = fd
        self._limit = limit
        self._remotes: dict[int, Remote] = {}
        self.broken: BaseException | None = None

    def function(self, name: str) -> Callable[..., Any]:
        def candidate(*args: Any, **kwargs: Any) -> Any:
            return self.request("entry", *args, **kwargs)

        candidate.__name__ = candidate.__qualname__ = name
        return candidate

    def request(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        """The result of an operation in the candidate's process, or its exception raised here.

        What the candidate changed in mutable arguments is changed in the originals.
        """
        encoder = codec.Encoder(extend=_write_handle)
        try:
            encoder.value((operation, args, tuple(kwargs.items())))
        except codec.NotPlain as error:
            self.broken = _cannot_send(error)
            raise self.broken from None
        try:
            channel.send_frame(self._fd, encoder.out)
            reply = channel.receive_frame(self._fd, self._limit)
            answer = self._read(codec.Decoder(reply, encoder.containers, self._extension))
        except (channel.Closed, channel.TooLarge, codec.BadData, RecursionError) as error:
            self.broken = CandidateGone(str(error) or "its process ended")
            raise self.broken from None
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    def many(
        self, calls: list[bytes], go_on: bool, told_before: list[int], digest_from: int | None
    ) -> Iterator[tuple[float, bytes]]:
        """Answers to calls of the entry point, (seconds, reply) each, as they come. calls: encoded
        arguments. go_on: also after a call that raised; else that is the last answer. told_before:
        numbers of the calls before which all answers are sent. digest_from: replies of so many
        bytes come as b"h" and their SHA-256 digest.
        """
        encoder = codec.Encoder()
        encoder.value(("many", (calls, go_on, told_before, digest_from), ()))
        left = len(calls)
        try:
            channel.send_frame(self._fd, encoder.out)
            while left:
                times, replies = channel.receive(self._fd, self._limit + MAX_MESSAGE)
                for seconds, reply in zip(times, replies, strict=True):
                    left -= 1
                    if type(seconds) is not float or type(reply) is not bytes or left < 0:
                        raise codec.BadData("not an answer")
                    if reply == b"o":
                        raise TooMuchOutput("it prints or returns more than allowed")
                    yield seconds, reply
                    if not go_on and reply[:1] == b"e":
                        return
        except TooMuchOutput as error:
            self.broken = error
            raise
        except (channel.Closed, channel.TooLarge, codec.BadData, TypeError, ValueError) as error:
            self.broken = CandidateGone(str(error) or "its process ended")
            raise self.broken from None

    def first_reply(self) -> Any:
        """The reply to the program itself: what it sent as ready, or its exception raised."""
        try:
            frame = channel.receive_frame(self._fd, self._limit)
            answer = (
                self._read(codec.Decoder(frame))
                if frame[:1] in (b"e", b"o")
                else codec.loads(frame)
            )
        except (channel.Closed, channel.TooLarge, codec.BadData) as error:
            raise CandidateGone(str(error) or "its process ended") from None
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    def _read(self, reply: codec.Decoder) -> Any:
        status = reply.byte()
        if status == ord("o"):
            self.broken = TooMuchOutput("it prints or returns more than allowed")
            raise self.broken
        known = list(reply.containers)
        for container in known:
            reply.refill(container)
        value = reply.value()
        reply.end()
        if status == ord("v"):
            return value
        return _Raised(_rebuild_error(value))

    def _extension(self, name: str, value: Any) -> Any:
        try:
            if name == "handle":
                return self._remotes.setdefault(int(value), Remote(self, int(value)))
            return extensions.build(name, value)
        except Exception as error:
            raise codec.BadData(f"extension {name!r}: {error}") from None


def receive_hello(fd: int, order: dict[str, Any]) -> None:
    """Hand the candidate's process at socket `fd` its order, and hear that it is confined."""
    with contextlib.suppress(channel.Closed):  # it says why in its hello, or is gone
        channel.send_trusted(fd, order)
    try:
        hello = channel.receive(fd, MAX_MESSAGE)
    except (channel.Closed, codec.BadData) as error:
        raise CandidateGone(str(error)) from None
    if "setup" in hello:
        raise SetupFailed(f"the candidate could not be confined: {hello['setup']}")


def start(fd: int, candidate: Candidate, job: dict[str, Any], names: list[str]) -> list[str]:
    """Hand over the program; those of `names` that it defines, once its module code has run."""
    order = {
        # The official program is this and the test in one text: one that ends in a backslash
        # compiles if the test begins with an empty line, and only then.
        "program": job["program"] + ("\n\n" if job["test"].startswith("\n") else "\n"),
        "prelude": job["prelude"],
        "entry_point": job["entry_point"],
        "names": names,
        "inside": job["judge"] == "in-process",
        "unittest": job["judge"] == "unittest",
    }
    receive_hello(fd, order)
    ready = candidate.first_reply()
    if not (type(ready) is tuple and len(ready) == 2 and type(ready[1]) is list):
        raise CandidateGone("it answers nonsense")
    return ready[1]


def _write_handle(encoder: codec.Encoder, value: Any) -> None:
    if type(value) is Remote:
        encoder.extension("handle", value._remote_number)
        return
    if not extensions.write(encoder, value):
        raise codec.NotPlain(type(value).__name__)


def _cannot_send(error: codec.NotPlain) -> BaseException:
    if isinstance(error, codec.TooDeep):  # the candidate's own answer, handed back to it
        return TooMuchOutput("an answer is nested too deeply")
    return TestNeedsInside(f'the test passes an object of type {error}: use judge="in-process"')


class Remote:
    """An object that stays in the candidate's process (an iterator, a function, an instance).

    Calling it, iterating over it or reading an attribute asks the candidate, whose answers are
    plain data again. Deciding does not: it is true, has no length and equals only itself, or
    another such object when the candidate says so.
    """

    def __init__(self, candidate: Candidate, number: int) -> None:
        self._remote_candidate = candidate
        self._remote_number = number

    def _remote(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        return self._remote_candidate.request(operation, self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote("call", *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        return self._remote("iter")

    def __next__(self) -> Any:
        return self._remote("next")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(other) is Remote and self._remote("equal", other) is True

    def __hash__(self) -> int:
        return self._remote_number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote("attribute", name)

    def __str__(self) -> str:
        return str(self._remote("str"))

    def __repr__(self) -> str:
        return str(self._remote("repr"))


def _rebuild_error(parts: Any) -> BaseException:
    """An exception of the same built-in class with the same text."""
    try:
        base_name, name, args, text = parts
        base = getattr(builtins, base_name)
        if not (isinstance(base, type) and issubclass(base, BaseException)):
            raise codec.BadData("not an exception")
        if name == base_name and args is not None:
            return base(*args)
        cls: Any = type(str(name), (base,), {"__str__": lambda self: str(text)})
        return cls.__new__(cls)
    except (TypeError, ValueError, AttributeError) as error:
        raise codec.BadData(f"exception: {error}") from None
