"""The judge's side of unittest_run: what came back, and whether it is a pass."""

from __future__ import annotations

import functools
import os
from typing import Any

from .. import channel, codec
from ..stdio import Full
from ..unittest_run import IMPOSSIBLE, impossible_name
from .remote import MAX_MESSAGE, Candidate, CandidateGone, SetupFailed, TooMuchOutput, start


class TestsFailed(Exception):
    """A test that failed, or a report that is not what passing looks like."""


@functools.lru_cache(maxsize=2048)
def named_tests(source: str) -> frozenset[str]:
    """Methods of `class TestCases` that unittest takes for tests. Raises SetupFailed."""
    import ast  # not before the fork of those that candidates come from

    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise SetupFailed(f"the test does not parse: {error}") from None
    classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == "TestCases"]
    if not classes:
        raise SetupFailed("the test defines no class TestCases")
    return frozenset(
        node.name
        for node in classes[-1].body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test")
    )


def judge(fd: int, candidate: Candidate, job: dict[str, Any]) -> BaseException | None:
    """Hand over the program, then its tests and a secret; what is wrong, or None."""
    names = named_tests(job["test"])
    start(fd, candidate, job, [])
    secret = os.urandom(16)
    try:
        channel.send(fd, {"test": job["test"], "secret": secret})
        answer = channel.receive(fd, MAX_MESSAGE)
    except (channel.Closed, channel.TooLarge, codec.BadData) as error:
        return CandidateGone(str(error) or "its process ended")
    if type(answer) is not dict:
        return CandidateGone("it answers nonsense")
    if "failed" in answer:
        return _error(str(answer.get("kind")), f"{answer.get('kind')}: {answer['failed']}")
    return _decide(answer, names, secret, job["test"])


def _decide(
    answer: dict[Any, Any], names: frozenset[str], secret: bytes, source: str
) -> BaseException | None:
    outcomes = _sealed_outcomes(answer, secret)
    if outcomes is None:
        return CandidateGone("it answers nonsense")
    impossible = {impossible_name(secret.hex(), number) for number in range(IMPOSSIBLE)}
    found = [outcome for outcome in outcomes if outcome[0] in impossible]
    if len(found) != 2 * IMPOSSIBLE or any(outcome != "failed" for _, outcome, _ in found):
        return TestsFailed("the program makes tests pass that cannot")
    return _of_tests([o for o in outcomes if o[0] not in impossible], names, source)


def _sealed_outcomes(answer: dict[Any, Any], secret: bytes) -> list[tuple[str, str, str]] | None:
    """The outcomes, if they are texts and their seal is right."""
    import hashlib

    outcomes = answer.get("outcomes")
    if type(outcomes) is not list:
        return None
    seal = hashlib.blake2b(key=secret)
    for entry in outcomes:
        if type(entry) is not tuple or [type(part) for part in entry] != [str, str, str]:
            return None
        seal.update(f"{entry[0]} {entry[1]}\n".encode("utf-8", "surrogatepass"))
    return outcomes if answer.get("seal") == seal.digest() else None


def _of_tests(
    outcomes: list[tuple[str, str, str]], names: frozenset[str], source: str
) -> BaseException | None:
    """unittest's own rule, except that what the test's source does not mention does not count."""
    allowed = {"ok"}
    if "skip" in source.lower():
        allowed.add("skipped")
    if "expectedFailure" in source:
        allowed.add("expected")
    # An unexpected success is no failure in the official rule either.
    if "expected" in allowed:
        allowed.add("unexpected")
    tests = {name for name, _, _ in outcomes}
    failed = {name: (outcome, text) for name, outcome, text in outcomes if outcome not in allowed}
    if failed:
        name, (outcome, text) = next(iter(failed.items()))
        message = f"{len(failed)} of {len(tests | names)} tests, {name}: {text or outcome}"
        return _error(text.partition(":")[0], message)
    if not tests or ("skipped" not in allowed and not names <= tests):
        return TestsFailed("not every test ran")
    return None


def _error(kind: str, message: str) -> BaseException:
    if kind == Full.__name__:
        return TooMuchOutput(message)
    return MemoryError(message) if kind == "MemoryError" else TestsFailed(message)
