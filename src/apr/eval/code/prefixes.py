"""The longest beginning of a text that Python can read. Nothing is executed.

Where code may end is found by one look at its lines: not inside brackets, strings or a continued
line, not before the block or function that a line promises, not inside a `try` without its
`except`. What may end there and is not Python has its mistake above, so no longer piece is Python
either: the last good end is found by doubling steps and bisection, a parse for each.
"""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterator

# A cut-off tail is short; beyond this many lines the text is not code with a broken end.
MAX_CUT_LINES = 400
MAX_PARSED = 1_000_000  # characters
_JOINED = "\0"  # stands for a line feed inside a statement; no Python has this character
_BLANK = f" \t\f\r{_JOINED}"
_LEXEME = re.compile(
    r"""
    \#[^\n]*
    | (?P<long>\"{3}|'{3}) (?: \\. | (?!(?P=long)) . )*+ (?:(?P=long))?
    | (?P<quote>["']) (?: \\. | (?!(?P=quote)) [^\n\\] )*+ (?P=quote)?
    | \\\n | \n | [()\[\]{}]
    """,
    re.VERBOSE | re.DOTALL,
)


def parse(code: str) -> ast.Module | None:
    """The syntax tree, or None where Python cannot read the code, or it is longer than any answer:
    a tree takes four hundred times the memory of its text.
    """
    if len(code) > MAX_PARSED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def longest_prefix(code: str) -> str:
    """The code without the lines at its end that keep it from parsing; as it is if none help."""
    if parse(code) is not None:
        return code
    lines = code.split("\n")
    ends = [n for n in reversed(_possible_ends(code)) if n > len(lines) - MAX_CUT_LINES]

    def good(end: int) -> bool:
        return parse("\n".join(lines[:end])) is not None

    reach = 1  # from the end in steps that double: the mistake is mostly near it
    while reach < len(ends) and not good(ends[reach - 1]):
        reach *= 2
    found = bisect_left(ends, True, reach // 2, min(reach, len(ends)), key=good)
    prefix = "\n".join(lines[: ends[found]]) if found < len(ends) else ""
    return prefix if prefix.strip() else code


def long_strings(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where strings in three quotes begin and end, read as Python from `start` on; between them
    empty spans tell how far it is read.
    """
    for found in _LEXEME.finditer(text, start):
        mark = found["long"]
        closed = mark is not None and len(found[0]) >= 6 and found[0].endswith(mark)
        yield found.span() if closed else (found.end(), found.end())


def _possible_ends(code: str) -> list[int]:
    """After which lines (counted from 1) whole statements end, as long as the code is Python."""
    ends = []
    tries: list[int] = []  # indentation of each open `try` that still lacks its `except`
    promised = False  # the last statement was a block's head or a decorator
    number = 0
    for line in _logical_lines(code):
        number += 1 + line.count(_JOINED)
        text = line.strip(_BLANK)
        if text:
            space = line[: len(line) - len(line.lstrip(_BLANK))].split(_JOINED)
            indent = len(next(filter(None, space), "").rpartition("\f")[2].expandtabs(8))
            while tries and tries[-1] >= indent:
                tries.pop()
            if re.match(r"try\b", text):
                tries.append(indent)
            promised = text.endswith(":") or text.startswith("@")
        # Python wants something, were it a blank, after a backslash and its line feed.
        if not promised and not tries and not line.endswith(_JOINED):
            ends.append(number)
    return ends


def _logical_lines(code: str) -> list[str]:
    """The code without comments and contents of strings, a statement's lines joined by _JOINED."""
    depth = 0

    def plain(found: re.Match[str]) -> str:
        nonlocal depth
        text = found[0]
        if text[0] in "\"'":
            return _JOINED * text.count("\n") + '""'
        if text == "\n":
            return _JOINED if depth else text
        depth += (text in "([{") - (text in ")]}" and depth > 0)
        return _JOINED if text == "\\\n" else " " if text[0] == "#" else text

    return _LEXEME.sub(plain, code).split("\n")
