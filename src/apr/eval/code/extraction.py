"""From what a model wrote to Python code. Pure functions; nothing is executed.

Chat answers come with fences, chatter, example calls and cut-off ends. What is kept: the block that
defines the entry point, down to the last line that still parses, without what only shows how it is
used (calls of the entry point, prints, asserts on it, `if __name__`), which could fail a right
answer. As in EvalPlus' sanitizer (evalplus/sanitize.py) the first definition of a name counts;
unlike there every helper, decorator and set-up statement stays.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from apr.eval.code.prefixes import longest_prefix, parse

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+.-]*)[^\n]*$", re.MULTILINE)
CODE_LINE = re.compile(
    r"^[ \t]*(from\s+[\w.]+\s+import\b|import\s|def\s|class\s|@\w|async\s)", re.M
)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
# Names whose use at top level makes a statement an example or a script.
SCRIPT_NAMES = frozenset({"print", "input", "__name__"})
MAX_STARTS = 20
_LEADING = re.compile(r"^[ \t]+", re.MULTILINE)
_ABOVE_BODY = "def _():\n    ...\n"


def cut_at(text: str, stops: tuple[str, ...]) -> str:
    """text up to the earliest stop string."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def chat_code(text: str, entry_point: str, fenced: bool = False) -> str:
    """The code of a chat answer: statements for the top level, or an indented function body.

    fenced: the answer was begun inside a code block (its opening fence is in the prompt). The
    result parses (a body: below a def line); where nothing in the answer does, it is the answer.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    blocks = [_unindented(block) for block in _blocks(text, fenced)]
    codes = [longest_prefix(block) for block in blocks]
    chosen = _choose(codes, entry_point)
    if chosen is None and not fenced and FENCE.search(text) is None:
        codes = [longest_prefix(start) for start in _starts(text)]
        chosen = _choose(codes, entry_point)
    if chosen is not None:
        return _joined(codes, chosen, entry_point)
    for block in [*blocks, *_indented_tail(text)]:
        body = body_of(block)
        if body is not None:
            return body
    # Nothing defines the entry point: what there is, for the verdict to be about it.
    return next((definitions(c, entry_point) for c in codes if c.strip() and parse(c)), text)


def is_body(code: str, entry_point: str) -> bool:
    """Whether `chat_code` gave a function's body rather than statements for the top level."""
    return code.startswith("    ") and not defines(code, entry_point)


def fenced_blocks(text: str) -> list[str]:
    """Contents of markdown code blocks; the last may lack its end.

    A fence that names a language always opens a block, so a missing end costs one block only.
    """
    blocks: list[str] = []
    mark, start = "", -1
    for match in FENCE.finditer(text):
        opens = start < 0 or (match.group(2) != "" and match.group(1).startswith(mark))
        closes = start >= 0 and match.group(1).startswith(mark)
        if closes:
            blocks.append(text[start : match.start()])
            start = -1
        if opens:
            mark, start = match.group(1), match.end() + 1
    if start >= 0:
        blocks.append(text[start:])
    return blocks


def definitions(code: str, entry_point: str) -> str:
    """The code without examples of its use and without second definitions of a name.

    Dropped at top level: statements that use `entry_point`, print, input or __name__ (unless they
    bind the entry point), bare expressions that are not calls, everything that depends on a
    dropped name, `from __future__` (not allowed after a prompt; it changes annotations only), and
    all but the first definition of a function or class whose body is more than a docstring or
    `pass`. Code that does not parse is returned as it is.
    """
    tree = parse(code)
    if tree is None:
        return code
    keep = _kept(tree.body, entry_point)
    lines = code.split("\n")
    result: list[str] = []
    last = 0
    for node, wanted in zip(tree.body, keep, strict=True):
        first = _first_line(node)
        if first <= last:  # shares a line with the statement before (`;`): same fate
            continue
        last = node.end_lineno or first
        if wanted:
            above = [line for line in lines[first - 2 : first - 1] if not line.strip()]
            result += [*(above if result else []), *lines[first - 1 : last]]
    kept = "\n".join(result) + "\n"
    return kept if result and parse(kept) is not None else code


def defines(code: str, name: str) -> bool:
    """Whether the top level binds `name`."""
    tree = parse(code)
    return tree is not None and any(name in _bound(node) for node in tree.body)


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


def _blocks(text: str, fenced: bool) -> list[str]:
    """The parts of an answer that may be code."""
    if fenced:
        closing = FENCE.search(text)
        blocks = [text] if closing is None else [text[: closing.start()]]
        # A fence with a language at once is the block opened a second time.
        if closing is not None:
            outside = text[closing.start() :] if closing.group(2) else text[closing.end() + 1 :]
            blocks += fenced_blocks(outside)
    else:
        blocks = fenced_blocks(text) or [text]
    return [_no_edges(block) for block in blocks if block.strip()]


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
        nodes = [n for n in (tree.body if tree else ()) if entry_point in _bound(n)]
        if any(not _is_stub(node) for node in nodes):
            return number
        if nodes and stub is None:
            stub = number
    return stub


def _joined(codes: Sequence[str], chosen: int, entry_point: str) -> str:
    """The chosen block, after imports and definitions it uses that other blocks have."""
    code = definitions(codes[chosen], entry_point)
    tree = parse(code)
    if tree is None:
        return code
    others: list[ast.stmt] = []
    texts: list[str] = []
    for number, other in enumerate(codes):
        found = parse(other) if number != chosen else None
        lines = other.split("\n")
        for node in found.body if found else ():
            if isinstance(node, DEFINITIONS + IMPORTS):
                others.append(node)
                texts.append("\n".join(lines[_first_line(node) - 1 : node.end_lineno]))
    bound = {name for node in tree.body for name in _bound(node)}
    support = [texts[number] for number in _needed(others, _used(tree), bound)]
    joined = "\n".join([*support, code])
    return joined if parse(joined) is not None else code


def _needed(nodes: Sequence[ast.stmt], used: set[str], bound: set[str]) -> list[int]:
    """Numbers of the nodes that bind what is used and not bound, and what those use in turn.

    As by going through the nodes in order, again and again, until a round finds nothing new.
    """
    names = [_bound(node) for node in nodes]
    binders: dict[str, list[int]] = {}
    for number, binds in enumerate(names):
        for name in binds:
            binders.setdefault(name, []).append(number)
    waiting = sorted((0, number) for name in used for number in binders.get(name, ()))  # a heap
    needed: set[int] = set()
    while waiting:
        turn, number = heappop(waiting)
        if names[number] & bound:
            continue
        needed.add(number)
        bound |= names[number]
        for name in _used(nodes[number]) - used:
            used.add(name)
            for other in binders.get(name, ()):
                heappush(waiting, (turn + (other <= number), other))
    return sorted(needed)


def _kept(body: Sequence[ast.stmt], entry_point: str) -> list[bool]:
    real = {n.name for n in body if isinstance(n, DEFINITIONS) and not _is_stub(n)}
    seen: set[str] = set()
    gone: set[str] = set()
    keep = []
    for node in body:
        wanted = _wanted(node, entry_point, gone)
        if isinstance(node, DEFINITIONS):
            wanted = node.name not in seen and (node.name not in real or not _is_stub(node))
            seen |= {node.name} if wanted else set()
        if not wanted:
            gone |= _bound(node) - seen
        else:
            gone -= _bound(node)
        keep.append(wanted)
    return keep


def _wanted(node: ast.stmt, entry_point: str, gone: set[str]) -> bool:
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return False
    if isinstance(node, IMPORTS + DEFINITIONS) or entry_point in _bound(node):
        return True
    if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call):
        return False
    if isinstance(node, ast.AnnAssign) and node.value is None:
        return False  # chatter such as "Note: this"
    if isinstance(node, ast.Return | ast.Pass | ast.Break | ast.Continue):
        return False
    used = _used(node)
    return not used & SCRIPT_NAMES and not used & gone and entry_point not in used


def _is_stub(node: ast.stmt) -> bool:
    """A definition whose body is a docstring, `pass` or `...` only."""
    if not isinstance(node, DEFINITIONS):
        return False
    return all(
        isinstance(child, ast.Pass)
        or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
        for child in node.body
    )


def _bound(node: ast.stmt) -> set[str]:
    """Names a statement of the top level binds there."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    names: set[str] = set()
    for child in _outside_definitions(node):
        if isinstance(child, IMPORTS):
            names |= {(a.asname or a.name).split(".")[0] for a in child.names}
        elif isinstance(child, DEFINITIONS):
            names.add(child.name)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            names.add(child.id)
    return names


def _outside_definitions(node: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement, without what is inside functions and classes."""
    todo: list[ast.AST] = [node]
    while todo:
        child = todo.pop()
        yield child
        if not isinstance(child, (*DEFINITIONS, ast.Lambda)):
            todo += ast.iter_child_nodes(child)


def _used(node: ast.AST) -> set[str]:
    return {
        child.id
        for child in ast.walk(node)
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load)
    }


def _returns(function: ast.AST) -> bool:
    return any(
        isinstance(child, ast.Return | ast.Yield | ast.YieldFrom | ast.Raise)
        for child in ast.walk(function)
    )


def _first_line(node: ast.stmt) -> int:
    """Line of a statement, of its first decorator if it has one."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])
