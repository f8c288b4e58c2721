"""From what a model wrote to Python code. Pure functions; nothing is executed.

Chat answers come with fences, chatter, example calls and cut-off ends. What is kept: the block that
defines the entry point, down to the last line that still parses, without what only shows how it is
used (`apr.eval.code.statements`), which could fail a right answer.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from apr.eval.code.fences import CODE_LINE, at_tags, parted, plain_markdown
from apr.eval.code.names import DEFINITIONS, IMPORTS, bound, root, use_of
from apr.eval.code.prefixes import longest_prefix, parse
from apr.eval.code.statements import definitions, first_line, is_stub

MAX_STARTS = 20
_LEADING = re.compile(r"^[ \t]+", re.MULTILINE)
_ABOVE_BODY = "def _():\n    ...\n"
_READS = re.compile(r"\binput\b|\bstdin\b|\bopen\(0")


def cut_at(text: str, stops: tuple[str, ...]) -> str:
    """text up to the earliest stop string."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def chat_code(text: str, entry_point: str, fenced: bool = False) -> str:
    """The code of a chat answer: statements for the top level, or an indented function body.

    fenced: the answer was begun inside a code block (its opening fence is in the prompt). The
    result parses (a body: below a def line); where nothing in the answer does, it is the answer.
    """
    text = plain_markdown(text)
    blocks, around = parted(text, fenced)
    # Where a fence lacks its other half, the code is outside of what looks like a block.
    outside = [part for piece in around for part in at_tags(piece)]
    blocks, outside = _cleaned(blocks), _cleaned(outside)
    codes = [longest_prefix(block) for block in blocks or outside]
    chosen = _choose(codes, entry_point)
    if chosen is None:
        begun = [longest_prefix(s) for part in outside for s in (part, *_starts(part))]
        found = _choose(begun, entry_point)
        if found is not None:
            codes, chosen = [begun[found], *codes], 0
    if chosen is not None:
        return _joined(codes, chosen, entry_point)
    for block in [*blocks, *outside, *_indented_tail(text)]:
        body = body_of(block)
        if body is not None:
            return body
    # Nothing defines the entry point: what there is, for the verdict to be about it.
    return next((definitions(c, entry_point) for c in codes if c.strip() and parse(c)), text)


def chat_function(text: str, entry_point: str, prompt: str, fenced: bool = False) -> str:
    """The code of a chat answer (`chat_code`) to a question in words, where no prompt stands before
    it: a bare body is put below a head.

    Its parameters are those that the question spells (`twice(n)`); where it spells none, the one
    name that the body uses and does not bind. A body for which neither is there stays a body.
    """
    code = chat_code(text, entry_point, fenced)
    if not is_body(code, entry_point):
        return code
    spelled = re.search(rf"\b{re.escape(entry_point)}\(([\w\s,]*)\)", prompt)
    names = [name.strip() for name in spelled[1].split(",")] if spelled else []
    if not all(name.isidentifier() for name in names) or not names:
        function = ast.parse(_ABOVE_BODY + code).body[0]
        names = sorted(_read_by(function) - {*vars(builtins), entry_point})
    head = f"def {entry_point}({', '.join(names)}):\n"
    return head + code if len(names) == 1 or spelled else code


def last_program(text: str) -> str:
    """The last block of a chat answer that is a Python program, of those that read input if any
    does; where none is one, the last block, or the answer.
    """
    text = plain_markdown(text)
    blocks, around = parted(text)
    if not blocks:
        blocks = [longest_prefix(start) for part in around for start in (part, *_starts(part))]
    programs = [code for code in _cleaned(blocks) if is_program(code)]
    reading = [code for code in programs if _READS.search(code)]
    return (reading or programs or blocks or [text])[-1]


def is_body(code: str, entry_point: str) -> bool:
    """Whether `chat_code` gave a function's body rather than statements for the top level."""
    return code.startswith("    ") and not defines(code, entry_point)


def defines(code: str, name: str) -> bool:
    """Whether the top level binds `name`."""
    tree = parse(code)
    return tree is not None and any(name in bound(node) for node in tree.body)


def body_of(text: str) -> str | None:
    """text as the body of a function, indented by four (its longest prefix that parses), or None.

    Mends indentation: of the whole text, or of a first line that lost its own.
    """
    plain = _LEADING.sub(lambda found: found[0].expandtabs(4), _no_edges(text))
    if not plain.strip():
        return None
    first, _, rest = plain.partition("\n")
    variants = [
        textwrap.indent(textwrap.dedent(plain), "    "),
        textwrap.indent(first.strip() + "\n" + textwrap.dedent(rest), "    "),
    ]
    if re.match(r" {4}\S", first):
        variants.insert(0, plain)
    for variant in variants:
        code = longest_prefix(_ABOVE_BODY + variant)
        body, tree = code[len(_ABOVE_BODY) :], parse(code)
        if body.strip() and tree is not None and len(tree.body) == 1 and _returns(tree.body[0]):
            return body + "\n"
    return None


def _cleaned(parts: Sequence[str]) -> list[str]:
    return [_unindented(_no_edges(part)) for part in parts if part.strip()]


def is_program(code: str) -> bool:
    """Whether code is Python that does something: numbers and words, as in a sample of output, are
    Python, too.
    """
    tree = parse(code)
    return tree is not None and not all(
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call) for node in tree.body
    )


def _starts(text: str) -> Iterator[str]:
    """The text from each of the first lines that look like code."""
    for number, match in enumerate(CODE_LINE.finditer(text)):
        if number == MAX_STARTS:
            return
        yield _unindented(text[match.start() :])


def _no_edges(text: str) -> str:
    """Without blank lines before and after."""
    return re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()


def _indented_tail(text: str) -> list[str]:
    """The text from its first indented line: a body after a sentence of chatter."""
    found = re.search(r"^(?: {4}|\t)", text, re.M)
    return [text[found.start() :]] if found else []


def _unindented(code: str) -> str:
    """Code that is indented as a whole (in a list, say), unless it is a function's body."""
    if code[:1] not in (" ", "\t"):
        return code  # dedent would still empty the blank lines inside strings
    plain = textwrap.dedent(code)
    return plain if CODE_LINE.match(plain) else code


def _choose(codes: Sequence[str], entry_point: str) -> int | None:
    """The first that defines the entry point; one with more than a docstring if there is one."""
    trees = [parse(code) for code in codes]
    stub = None
    for number, tree in enumerate(trees):
        nodes = [n for n in (tree.body if tree else ()) if entry_point in bound(n)]
        if any(not is_stub(node) for node in nodes):
            return number
        if nodes and stub is None:
            stub = number
    return stub


def _joined(codes: Sequence[str], chosen: int, entry_point: str) -> str:
    """The chosen block, after imports, definitions and values it uses that other blocks have."""
    code = definitions(codes[chosen].rstrip() + "\n", entry_point)
    tree = parse(code)
    if tree is None:
        return code
    others: list[ast.stmt] = []
    texts: list[str] = []
    for number, other in enumerate(codes):
        found = parse(other) if number != chosen else None
        lines = other.split("\n")
        for node in found.body if found else ():
            if isinstance(node, (*DEFINITIONS, *IMPORTS, ast.Assign, ast.AnnAssign)):
                others.append(node)
                texts.append("\n".join(lines[first_line(node) - 1 : node.end_lineno]))
    have = {name for node in tree.body for name in bound(node)}
    used = {name for node in tree.body for name in _read_by(node)}
    support = [texts[number] for number in _needed(others, used, have)]
    joined = "\n".join([*support, code])
    return joined if parse(joined) is not None else code


def _needed(nodes: Sequence[ast.stmt], used: set[str], have: set[str]) -> list[int]:
    """Numbers of the nodes that bind what is used and not there, and what those use in turn.

    As by going through the nodes in order, again and again, until a round finds nothing new.
    """
    names = [bound(node) for node in nodes]
    binders: dict[str, list[int]] = {}
    for number, binds in enumerate(names):
        for name in binds:
            binders.setdefault(name, []).append(number)
    waiting = sorted((0, number) for name in used for number in binders.get(name, ()))  # a heap
    needed: set[int] = set()
    while waiting:
        turn, number = heappop(waiting)
        if names[number] & have:
            continue
        needed.add(number)
        have |= names[number]
        for name in _read_by(nodes[number]) - used:
            used.add(name)
            for other in binders.get(name, ()):
                heappush(waiting, (turn + (other <= number), other))
    return sorted(needed)


def _read_by(node: ast.stmt) -> set[str]:
    return set(map(root, use_of(node).reads))


def _returns(function: ast.AST) -> bool:
    return any(
        isinstance(child, ast.Return | ast.Yield | ast.YieldFrom | ast.Raise)
        for child in ast.walk(function)
    )
