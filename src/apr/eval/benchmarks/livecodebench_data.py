"""LiveCodeBench's rows and tests (Hugging Face dataset livecodebench/code_generation_lite)."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from apr.common.errors import UsageError
from apr.common.record import sha256_of
from apr.common.rows import read_located_rows, read_row_at

MAX_TESTS_BYTES = 256 << 20  # of one problem, unpacked
_TEXTS = (
    "question_id",
    "question_content",
    "starter_code",
    "difficulty",
    "contest_date",
    "public_test_cases",
    "private_test_cases",
    "metadata",
)


@dataclass(frozen=True)
class Problem:
    """One problem. function: to be called, empty for a program that reads standard input.

    path, offset: where its row is, whose tests are read when they are needed (the files of a
    release have gigabytes).
    """

    question_id: str
    content: str
    starter_code: str = ""
    difficulty: str = ""
    date: datetime = datetime.min
    function: str = ""
    path: Path = Path()
    offset: int = 0


def read_problems(paths: Sequence[Path]) -> dict[str, Problem]:
    """The problems of JSON-lines files, by question_id. Raises UsageError."""
    problems: dict[str, Problem] = {}
    for path in paths:
        for line, offset, row in read_located_rows(path):
            problem = _problem(row, path, line, offset)
            if problem.question_id in problems:
                raise UsageError(
                    f"{path} line {line}: question_id {problem.question_id!r} occurs twice"
                )
            problems[problem.question_id] = problem
    if not problems:
        raise UsageError(f"{paths[0]} has no problems")
    return problems


def _problem(row: dict[str, Any], path: Path, line: int, offset: int) -> Problem:
    where = f"{path} line {line}"
    missing = [field for field in _TEXTS if not isinstance(row.get(field), str)]
    if missing:
        raise UsageError(f"{where} has no text in field {missing[0]!r}")
    try:
        date = datetime.fromisoformat(row["contest_date"]).replace(tzinfo=None)
    except ValueError:
        raise UsageError(
            f"{where}: contest_date {row['contest_date']!r} is not a date", "as 2024-02-17"
        ) from None
    metadata = _from_json(row["metadata"], f"{where}: metadata")
    function = metadata.get("func_name") if isinstance(metadata, dict) else ""
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise UsageError(f"{where}: metadata names no function in 'func_name'")
    return Problem(
        question_id=row["question_id"],
        content=row["question_content"],
        starter_code=row["starter_code"],
        difficulty=row["difficulty"],
        date=date,
        function=function or "",
        path=path,
        offset=offset,
    )


@functools.lru_cache(maxsize=2)  # the samples of a problem are judged one after another
def read_cases(problem: Problem) -> tuple[tuple[str, str], ...]:
    """Input and expected output of each test, public ones first. Raises UsageError."""
    return _cases(problem, ("public_test_cases", "private_test_cases"))


def read_public_cases(problem: Problem) -> tuple[tuple[str, str], ...]:
    """As `read_cases`, without the private ones. Raises UsageError."""
    return _cases(problem, ("public_test_cases",))


def _cases(problem: Problem, fields: Sequence[str]) -> tuple[tuple[str, str], ...]:
    where = f"{problem.path}, question_id {problem.question_id!r}"
    row = read_row_at(problem.path, problem.offset)
    cases: list[tuple[str, str]] = []
    for field in fields:
        for test in unpack_tests(row[field], f"{where}: {field}"):
            if not (isinstance(test.get("input"), str) and isinstance(test.get("output"), str)):
                raise UsageError(f"{where}: a test of {field} lacks the text 'input' or 'output'")
            cases.append((test["input"], test["output"]))
    if not cases:
        raise UsageError(f"{where} has no test in {' or '.join(fields)}")
    return tuple(cases)


def unpack_tests(text: str, where: str) -> list[dict[str, Any]]:
    """Tests from JSON, or from base64 of zlib of a pickled string of JSON.

    The pickle may hold a string and nothing else. Raises UsageError, beginning with `where`.
    """
    try:
        tests = json.loads(text)
    except (ValueError, RecursionError):
        tests = _from_json(_unpickle(_inflate(text, where), where), where)
    if not (isinstance(tests, list) and all(isinstance(test, dict) for test in tests)):
        raise UsageError(f"{where} is not a list of tests")
    return tests


def _inflate(text: str, where: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(base64.b64decode(text, validate=True), MAX_TESTS_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise UsageError(f"{where} is neither JSON nor base64 of zlib: {error}") from None
    if stream.unconsumed_tail:
        raise UsageError(f"{where} is larger than {MAX_TESTS_BYTES >> 20} MiB when unpacked")
    if not stream.eof:
        raise UsageError(f"{where} is cut off")
    return content


class _StringOnly(pickle.Unpickler):
    """Builds no object of any class, so nothing of the file's choosing is called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object elsewhere")


def _unpickle(content: bytes, where: str) -> str:
    try:
        value = _StringOnly(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise UsageError(f"{where} holds no pickled string: {error}") from None
    if type(value) is not str:
        raise UsageError(f"{where} holds a pickled {type(value).__name__}, not a string")
    return value


def _from_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}") from None


def data_sha256(paths: Sequence[Path]) -> str:
    """Checksum of a file, or of the checksums of several."""
    digests = [sha256_of(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
