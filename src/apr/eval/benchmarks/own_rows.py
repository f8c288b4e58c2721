"""The rows of a benchmark of one's own, read strictly (docs/evaluation.md has the shape)."""

from __future__ import annotations

import ast
import difflib
import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.rows import is_unicode
from apr.eval.benchmarks.asserts import (
    called_by,
    defines_check,
    names_of,
    stands_alone,
    tested_function,
)
from apr.eval.benchmarks.task import Task
from apr.eval.code.prefixes import parse

TIME_LIMIT = 3.0
LONGEST = 3600.0
FIELDS = (
    *("task_id", "prompt", "entry_point", "test", "cases", "canonical_solution", "stop", "group"),
    *("time_limit", "judge"),
)
_JUDGES = ("proxy", "in-process")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class OwnTask(Task):
    """continued: the prompt is the beginning of the program (else words, and a completion is the
    whole program). cases: of programs that read standard input, (input, output). stop: where a
    base model's text ends; () for the usual. groups: that get a score of their own. time_limit:
    seconds of processor time, of each case where there are cases. judge: as in Job. stated: the
    row says it.
    """

    continued: bool = False
    cases: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    time_limit: float = TIME_LIMIT
    judge: Literal["proxy", "in-process", "stdin"] = "proxy"
    stated: bool = False


def read_tasks(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, OwnTask]:
    """Tasks by id. rows: where each is, for its error, and what it holds. Raises UsageError."""
    tasks: dict[str, OwnTask] = {}
    for where, row in rows:
        task = _task(where, row)
        if task.task_id in tasks:
            raise UsageError(f"{where}: task_id {task.task_id!r} occurs twice")
        tasks[task.task_id] = task
    return tasks


def _task(where: str, row: Mapping[str, Any]) -> OwnTask:
    _check_names(where, row)
    task_id, prompt = (_text(where, row, name) for name in ("task_id", "prompt"))
    solution = _text(where, row, "canonical_solution") if "canonical_solution" in row else ""
    stop, groups = (_texts(where, row, name) for name in ("stop", "group"))
    seconds = _seconds(where, row)
    if ("cases" in row) == ("test" in row):
        raise UsageError(
            f"{where} has {'both' if 'test' in row else 'neither'} of 'test' and 'cases'",
            "test judges a function, cases a program that reads standard input",
        )
    if "cases" in row:
        for name in ("entry_point", "judge"):
            if name in row:
                raise UsageError(f"{where}: field {name!r} has no meaning beside 'cases'")
        return OwnTask(
            *(task_id, prompt, "", "", solution),
            cases=_cases(where, row["cases"]),
            judge="stdin",
            stop=stop,
            groups=groups,
            time_limit=seconds,
        )
    head = _beginning(prompt)
    test = _test(where, row)
    tree = _tree(where, test)
    name = _entry_point(where, row, head, tree, solution)
    _check_test(where, tree, name)
    judge = row.get("judge", "proxy" if stands_alone(tree, name, names_of(head)) else "in-process")
    if judge not in _JUDGES:
        raise UsageError(f"{where}: judge is {judge!r}", f"one of {', '.join(_JUDGES)}")
    return OwnTask(
        *(task_id, prompt, name, test, solution),
        continued=head is not None,
        judge=judge,
        stated="judge" in row,
        stop=stop,
        groups=groups,
        time_limit=seconds,
    )


def _check_names(where: str, row: Mapping[str, Any]) -> None:
    """Fields of other names are the user's own, except those that look like a slip."""
    for name in row:
        if name not in FIELDS:
            meant = difflib.get_close_matches(name.lower(), FIELDS, 1, cutoff=0.8)
            if meant:
                raise UsageError(f"{where}: field {name!r} is unknown", f"{meant[0]}?")


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where} has no text in field {name!r}")
    if not is_unicode(value):
        raise UsageError(f"{where} field {name!r} is not text: a surrogate without its pair")
    return value


def _texts(where: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """One text, or a list of them; none where the field is missing."""
    if name not in row:
        return ()
    value = row[name] if isinstance(row[name], list) else [row[name]]
    if not all(isinstance(part, str) and part and is_unicode(part) for part in value):
        raise UsageError(f"{where}: field {name!r} is neither a text nor a list of texts")
    return tuple(value)


def _seconds(where: str, row: Mapping[str, Any]) -> float:
    value = row.get("time_limit", TIME_LIMIT)
    if type(value) not in (int, float) or not 0 < value <= LONGEST:
        raise UsageError(
            f"{where}: time_limit is {value!r}", f"seconds, more than 0 and up to {LONGEST:g}"
        )
    return float(value)


def _cases(where: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: field 'cases' is no list of cases")
    found = []
    for number, case in enumerate(value, 1):
        pair = (case.get("input"), case.get("output")) if isinstance(case, dict) else (None, None)
        given, wanted = (t if isinstance(t, str) and is_unicode(t) else None for t in pair)
        if given is None or wanted is None:
            raise UsageError(
                f"{where}: case {number} is not two texts", '{"input": "1 2\\n", "output": "3\\n"}'
            )
        found.append((given, wanted))
    return tuple(found)


def _test(where: str, row: Mapping[str, Any]) -> str:
    """Its text; a list of asserts is one, too."""
    value = row["test"]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        row = {"test": "\n".join(value)}
    return _text(where, row, "test")


def _tree(where: str, test: str) -> ast.Module:
    tree = parse(test)
    if tree is None:
        raise UsageError(f"{where}: field 'test' is not Python")
    return tree


def _beginning(prompt: str) -> ast.Module | None:
    """The prompt as a program whose last function or class has a body to come; None for words."""
    tree = parse(f"{prompt.rstrip()}\n    pass\n")
    begun = tree is not None and isinstance(tree.body[-1], _DEFINITIONS)
    return tree if begun else None


def _entry_point(
    where: str, row: Mapping[str, Any], head: ast.Module | None, tests: ast.Module, solution: str
) -> str:
    """The name that is judged: as the row says, else what the prompt begins or the tests call."""
    if "entry_point" in row:
        name = row["entry_point"]
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"{where}: entry_point {name!r} is not a function's name")
        return name
    found: str | None = None
    if head is not None:
        last = head.body[-1]
        found = last.name if isinstance(last, _DEFINITIONS) else None
    elif solved := parse(solution):
        found = tested_function(solved, tests)
    if found is None:
        called = sorted(called_by(tests) - names_of(tests, known_to_python=True))
        found = called[0] if len(called) == 1 else None
    if found is None:
        raise UsageError(f"{where} has no field 'entry_point'", "the name of the function judged")
    return found


def _check_test(where: str, tests: ast.Module, entry_point: str) -> None:
    """A test that asks the program nothing would let every program pass."""
    names = {entry_point}
    if defines_check(tests):
        check = next(n for n in reversed(tests.body) if getattr(n, "name", "") == "check")
        arguments = check.args.args if isinstance(check, ast.FunctionDef) else []
        if len(arguments) != 1:
            raise UsageError(f"{where}: its check takes {len(arguments)} arguments", "one")
        names.add(arguments[0].arg)
    used = {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
    if not used & names:
        raise UsageError(f"{where}: its test never calls {entry_point}", "every program passes it")
