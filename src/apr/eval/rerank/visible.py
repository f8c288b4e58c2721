"""The examples a prompt shows: calls of its function, and what they should give.

Read from the prompt alone. Hidden tests are not at hand here, by type: a `Question` has none.
"""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

UNKNOWN = object()  # the expected answer of a call that the prompt shows without one
_ARROWS = re.compile(
    r"\s*(?:==>|==|=>|->|=|➞|→|returns?:?|should return|should be|is|#\s*(?:returns?|=>|->)?)\s*"
)
_INPUT_OUTPUT = (
    re.compile(r"^\s*Input\s*:\s*(?P<given>.+?)\n\s*Output\s*:\s*(?P<result>.+?)$", re.M),
    re.compile(
        r"^\s*For (?P<given>\w+ = .+?),?\s+the (?:output|result) should be\s+(?P<result>.+?)\.?$",
        re.M,
    ),
)
_FENCE = re.compile(r"^\s*```.*$", re.M)  # the line would be read as part of an answer
_NAMED = re.compile(r"(?:^|,)\s*[A-Za-z_]\w*\s*[=:]\s*")
_WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}
MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Question:
    """What a model was asked, without what answers are judged by."""

    task_id: str
    prompt: str
    entry_point: str


@dataclass(frozen=True)
class Truth:
    """An answer of which the prompt says no more than whether it is true or false."""

    value: bool


@dataclass(frozen=True)
class Example:
    """One call. expected: a value, a Truth, or UNKNOWN where the prompt does not tell."""

    arguments: tuple[Any, ...]
    expected: Any = UNKNOWN


def visible_examples(question: Question) -> list[Example]:
    """Doctests, asserts, lines like `f(1, 2) == 3` or `f(1) ➞ 2`, and pairs of lines `Input: 1` and
    `Output: 2` (or `For n = 1 the output should be 2`), all with literals in them.

    Calls with keywords or with arguments that are no literals are left out.
    """
    found: list[Example] = []
    for example in (*_doctests(question), *_calls(question), *_inputs_and_outputs(question)):
        known = next((old for old in found if _same(old.arguments, example.arguments)), None)
        if known is None:
            found.append(example)
        elif known.expected is UNKNOWN and example.expected is not UNKNOWN:
            found[found.index(known)] = example
    return found[:MAX_EXAMPLES]


def _doctests(question: Question) -> Iterator[Example]:
    try:
        parsed = doctest.DocTestParser().get_examples(_FENCE.sub("", question.prompt))
    except ValueError:  # inconsistent indentation
        return
    for item in parsed:
        source, want = item.source.strip(), item.want.partition('"""')[0].partition("'''")[0]
        left, equals, right = source.partition("==")
        call = _call(source, question.entry_point)
        if call is not None:
            yield Example(call, _literal(want))
        elif equals and (call := _call(left.strip(), question.entry_point)) is not None:
            yield Example(call, _literal(right))
        else:
            yield from map(Example, _calls_inside(source, question.entry_point))


def _calls_inside(source: str, name: str) -> Iterator[tuple[Any, ...]]:
    """The literal arguments of calls somewhere in an expression."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (found := _call(ast.unparse(node), name)) is not None:
            yield found


def _inputs_and_outputs(question: Question) -> Iterator[Example]:
    """`Input: grid = [[1]], capacity = 2` above `Output: 1`; `For n = 4 the output should be 2`."""
    parameters = parameter_annotations(question)
    for match in (m for form in _INPUT_OUTPUT for m in form.finditer(question.prompt)):
        text = _NAMED.sub(",", match["given"]).strip().strip(",")
        given = _literal(f"({text},)")
        if given is not UNKNOWN and len(given) == len(parameters):
            yield Example(given, _literal(match["result"]))


def parameter_annotations(question: Question) -> dict[str, str]:
    """Parameters of the function as the prompt declares it, with their annotations or "". Empty if
    it does not.
    """
    name = re.escape(question.entry_point)
    found = re.search(rf"^[ \t]*def {name}\(.*?\)[^\n]*:[ \t]*$", question.prompt, re.M | re.S)
    if found is None:
        return {}
    try:
        (function,) = ast.parse(found[0].strip() + " pass").body
    except (SyntaxError, ValueError):
        return {}
    assert isinstance(function, ast.FunctionDef)
    return {
        a.arg: "" if a.annotation is None else ast.unparse(a.annotation) for a in function.args.args
    }


def _calls(question: Question) -> Iterator[Example]:
    """Calls anywhere in the prompt but in its code, with what follows them on their line."""
    name = re.escape(question.entry_point)
    for match in re.finditer(rf"(?<![\w.]){name}\(", question.prompt):
        line_start = question.prompt.rfind("\n", 0, match.start()) + 1
        before = question.prompt[line_start : match.start()]
        if before.strip().startswith(">>>") or re.search(r"\bdef\s+$", before):
            continue
        rest = question.prompt[match.start() :]
        text = _balanced(rest)
        arguments = _call(text, question.entry_point) if text else None
        if arguments is None:
            continue
        after = rest[len(text) :].partition("\n")[0]
        yield Example(arguments, _expected(before, after))


def _expected(before: str, after: str) -> Any:
    """What a line says a call gives. before, after: the line around it."""
    asserted = before.strip() == "assert"
    if before.strip() == "assert not" and not after.strip():
        return Truth(False)
    if asserted and not after.strip():
        return Truth(True)
    if before.strip() and not asserted and before.rstrip()[-1:] in "([,":
        return UNKNOWN  # part of a larger expression
    arrow = _ARROWS.match(after)
    if arrow is None:
        return UNKNOWN
    text = after[arrow.end() :].partition('"""')[0].strip().strip("`").rstrip(".;")
    return next((v for t in _beginnings(text) if (v := _literal(t)) is not UNKNOWN), UNKNOWN)


def _beginnings(text: str) -> Iterator[str]:
    """A text and what is left of it without a trailing remark."""
    yield text
    for mark in ("#", " (", ", ", " because", " since", " and ", " as "):
        if mark in text:
            yield text.partition(mark)[0].strip()


def _balanced(text: str) -> str:
    """The call at the beginning of a text, up to the bracket that closes it; else empty."""
    for at, character in enumerate(text[:2000]):
        if character == ")":
            try:
                ast.parse(text[: at + 1], mode="eval")
            except (SyntaxError, ValueError):
                continue
            return text[: at + 1]
    return ""


def _call(source: str, name: str) -> tuple[Any, ...] | None:
    """The literal arguments of a call of `name`; None for anything else."""
    try:
        node = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return None
    if node.func.id != name or node.keywords:
        return None
    try:
        return tuple(ast.literal_eval(argument) for argument in node.args)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None


def _literal(text: str) -> Any:
    text = text.strip()
    try:
        return ast.literal_eval(_WORDS.get(text, text))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return UNKNOWN


def _same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b)
