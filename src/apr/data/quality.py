"""A score of 0 to 100 for training data, with its reasons: the mean of its rows' scores.

A row's question, answer and code are looked at. Code is parsed and compiled, never run; unused and
undefined names are found by pyflakes. The points each problem costs are ours: a row of 100 points
has none, one of 0 should not be trained on.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apr.common.errors import AprError, UsageError
from apr.common.progress import counted
from apr.common.rows import row_writer
from apr.data.duplicates import THRESHOLD, find_duplicates
from apr.data.training_rows import Example, column_names, read_examples
from apr.eval.code.fences import FENCE, fenced_blocks

# problem -> points of 100
COSTS = {
    "empty response": 100,
    "exact duplicate": 60,
    "syntax error": 60,
    "refusal": 60,
    "placeholder": 40,
    "repeats the question": 40,
    "unclosed code block": 30,
    "near-duplicate": 30,
    "undefined name": 20,
    "empty question": 20,
    "very long response": 10,
    "redefined or unused": 5,
    "compiler warning": 5,
    "bare except": 5,
    "mutable default": 5,
    "other pyflakes message": 5,
}
LONGEST = 8000  # characters of a response: 2000 tokens or more
PYTHON = frozenset({"", "python", "python3", "py"})
# Lines of Python and hardly any other language, for code that does not parse.
PYTHON_LINE = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(.*\).*:|class \w+[^{};]*:|from [\w.]+ import [^;{}'\"]+"
    r"|import [\w., ]+)[ \t]*$",
    re.M,
)
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|language model)\b|^i(?:'m| am) sorry,? but\b"
    r"|^i can(?:no|')t (?:help|assist|do)\b",
    re.I,
)
PLACEHOLDER = re.compile(
    r"#\s*(?:your|add|put|write|insert|rest of)\b.*\b(?:code|logic|implementation)\b"
    r"|#\s*(?:todo|fixme)\b|#\s*\.\.\.",
    re.I,
)


@dataclass(frozen=True)
class Problem:
    """kind: of `COSTS`. detail: e.g. the name, and its line in the code."""

    kind: str
    detail: str = ""


def problems_of(example: Example, code: str | None) -> list[Problem]:
    """What is wrong with a row by itself. code: the Python of its response, if it has any.

    Raises AprError if pyflakes is not installed.
    """
    response = example.response.strip()
    if not response:
        return [Problem("empty response")]
    found = []
    if example.shape != "text":
        prompt = example.prompt.strip()
        if not prompt:
            found.append(Problem("empty question"))
        elif prompt == response:
            found.append(Problem("repeats the question"))
    if REFUSAL.search(response):
        found.append(Problem("refusal"))
    if len(response) > LONGEST:
        found.append(Problem("very long response", f"{len(response)} characters"))
    if _is_unclosed(response):
        found.append(Problem("unclosed code block"))
    return found + (list(_code_problems(code, example.prompt)) if code is not None else [])


def python_code(response: str) -> str | None:
    """The Python of an answer: its fenced blocks, or all of it if it is code; None if it is not.

    Blocks of other languages and interpreter sessions are not looked at.
    """
    if FENCE.search(response):
        languages = [match.group(2).lower() for match in FENCE.finditer(response)]
        if not PYTHON.issuperset(languages):
            return None
        blocks = [block for block in fenced_blocks(response) if not block.lstrip().startswith(">")]
        named = any(languages)
        code = "\n\n".join(blocks)
        return code if named or PYTHON_LINE.search(code) else None
    return response if PYTHON_LINE.match(response.lstrip("\n")) or _parses(response) else None


def _parses(text: str) -> bool:
    """Whether it is code for sure: a word or a list of words parses, too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(node, ast.Expr) for node in tree.body)


def _is_unclosed(response: str) -> bool:
    is_open = False
    for match in FENCE.finditer(response):
        is_open = match.group(2) != "" or not is_open
    return is_open


def _compiled(code: str) -> tuple[ast.Module, list[str]]:
    """Syntax tree and the compiler's warnings. Raises SyntaxError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tree = ast.parse(code)
            compile(code, "<row>", "exec", dont_inherit=True)
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            raise SyntaxError(str(error)) from None
    return tree, [str(one.message) for one in caught]


def _code_problems(code: str, prompt: str) -> Iterator[Problem]:
    try:
        tree, warned = _compiled(code)
    except SyntaxError as error:
        yield Problem("syntax error", f"line {error.lineno}: {error.msg}")
        return
    for message in dict.fromkeys(warned):
        yield Problem("compiler warning", message)
    if PLACEHOLDER.search(code) or _only_stubs(tree):
        yield Problem("placeholder")
    yield from _pyflakes_problems(tree, prompt)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield Problem("bare except", f"line {node.lineno}")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            if any(isinstance(one, ast.List | ast.Dict | ast.Set) for one in defaults):
                yield Problem("mutable default", f"line {node.lineno}")


def _only_stubs(tree: ast.Module) -> bool:
    """Whether there are functions, and none has a body."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return bool(functions) and all(
        isinstance(statement, ast.Pass)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for function in functions
        for statement in function.body
    )


def _pyflakes_problems(tree: ast.Module, prompt: str) -> Iterator[Problem]:
    """Names the prompt speaks of count as defined: it may have given their code."""
    checker, messages = _pyflakes()
    given = frozenset(re.findall(r"\w+", prompt))
    kinds: dict[type, str] = {
        messages.UndefinedName: "undefined name",
        messages.UndefinedLocal: "undefined name",
        messages.UnusedImport: "redefined or unused",
        messages.UnusedVariable: "redefined or unused",
        messages.RedefinedWhileUnused: "redefined or unused",
    }
    for message in sorted(checker.Checker(tree).messages, key=lambda one: (one.lineno, one.col)):
        if isinstance(message, messages.UndefinedName) and message.message_args[0] in given:
            continue
        detail = f"line {message.lineno}: {message.message % message.message_args}"
        yield Problem(kinds.get(type(message), "other pyflakes message"), detail)


def _pyflakes() -> tuple[Any, Any]:
    try:
        from pyflakes import checker, messages
    except ImportError:
        raise AprError(
            "code is checked with the pyflakes package, which is not installed",
            "pip install pyflakes, or apr[data]",
        ) from None
    return checker, messages


@dataclass(frozen=True)
class Quality:
    """score: mean of the rows' (100 less the costs of the problems a row has, each kind once, at
    least 0). with_code: rows with Python. problems: kind -> rows that have it. lost: kind -> what
    it costs the score at most, in points. lengths: of responses, in characters.
    """

    data: str
    rows: int
    score: float
    with_code: int
    near_duplicate_threshold: float
    problems: dict[str, int]
    lost: dict[str, float]
    lengths: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(
    data: Path,
    *,
    threshold: float = THRESHOLD,
    scores: Path | None = None,
    columns: Sequence[str] = (),
) -> Quality:
    """Check every row by itself and against the others.

    threshold: least Jaccard similarity of near-duplicates. scores: a file for one row each:
    {where, score, problems}. columns: as `column_names` takes them. Raises UsageError, AprError.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"`near` {threshold:g} is not over 0 and up to 1")
    places: list[str] = []
    found: list[list[Problem]] = []
    texts: list[str] = []
    lengths: list[int] = []
    with_code = 0
    for example in counted(read_examples(data, column_names(columns)), "rows checked"):
        places.append(example.where)
        code = python_code(example.response)
        with_code += code is not None
        found.append(problems_of(example, code))
        texts.append(example.text)
        lengths.append(len(example.response))
    if not places:
        raise UsageError(f"{data} has no rows")
    duplicates = find_duplicates(counted(texts, "rows compared"), threshold)
    for i, (exact, near) in enumerate(zip(duplicates.exact, duplicates.near, strict=True)):
        if exact != i:
            found[i].append(Problem("exact duplicate", f"of {places[exact]}"))
        elif near != i:
            found[i].append(Problem("near-duplicate", f"of {places[near]}"))
    row_scores = [score(problems) for problems in found]
    with row_writer(scores) if scores else nullcontext() as write:
        if write is not None:
            for where, points, problems in zip(places, row_scores, found, strict=True):
                write({"where": where, "score": points, "problems": [asdict(p) for p in problems]})
    counts = Counter(kind for problems in found for kind in {one.kind for one in problems})
    return Quality(
        data=str(data),
        rows=len(places),
        score=round(sum(row_scores) / len(row_scores), 2),
        with_code=with_code,
        near_duplicate_threshold=threshold,
        problems={kind: counts[kind] for kind in COSTS if counts[kind]},
        lost={
            kind: round(COSTS[kind] * counts[kind] / len(places), 2)
            for kind in COSTS
            if counts[kind]
        },
        lengths=_quantiles(lengths),
    )


def score(problems: list[Problem]) -> int:
    """100 less the cost of each kind of problem there is, at least 0."""
    return max(0, 100 - sum(COSTS[kind] for kind in {one.kind for one in problems}))


def _quantiles(lengths: list[int]) -> dict[str, int]:
    values = np.percentile(lengths, [0, 5, 50, 95, 100], method="lower").astype(int).tolist()
    return dict(zip(("min", "p5", "median", "p95", "max"), values, strict=True))
