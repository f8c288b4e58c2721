"""From what a model wrote to Python code. Pure functions; nothing is executed.

Chat answers come with fences, chatter, example calls and cut-off ends. What is kept: the code that
defines the entry point, down to the last line that still parses, and of its top level the imports,
definitions and assignments (as EvalPlus' sanitizer does; unlike it, every helper and decorator
stays). Example calls, asserts and `if __name__` blocks go, so that they cannot fail a right answer.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+.-]*)[^\n]*$", re.MULTILINE)
KEPT = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
)
# A cut-off tail is short; beyond this many lines the text is not code with a broken end.
MAX_CUT_LINES = 400


def cut_at(text: str, stops: tuple[str, ...]) -> str:
    """text up to the earliest stop string."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def parse(code: str) -> ast.Module | None:
    """The syntax tree, or None where Python would not compile the code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def fenced_blocks(text: str) -> list[str]:
    """Contents of markdown code blocks; the last may lack its end."""
    blocks: list[str] = []
    opened: tuple[str, int] | None = None
    for match in FENCE.finditer(text):
        mark, language = match.group(1), match.group(2)
        if opened is None:
            opened = (mark, match.end() + 1)
        elif not language and mark.startswith(opened[0]):
            blocks.append(text[opened[1] : match.start()])
            opened = None
    if opened is not None:
        blocks.append(text[opened[1] :])
    return blocks


def longest_prefix(code: str) -> str:
    """The code without the lines at its end that keep it from parsing; as it is if none help."""
    lines = code.split("\n")
    for cut in range(min(len(lines), MAX_CUT_LINES)):
        candidate = "\n".join(lines[: len(lines) - cut])
        if candidate.strip() and parse(candidate) is not None:
            return candidate
    return code


def definitions(code: str) -> str:
    """The imports, definitions and assignments of the top level; code that does not parse stays."""
    tree = parse(code)
    if tree is None:
        return code
    lines = code.split("\n")
    kept = []
    for node in tree.body:
        if not isinstance(node, KEPT) and not _guards_definitions(node):
            continue
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        kept.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n".join(kept) + "\n" if kept else code


def _guards_definitions(node: ast.stmt) -> bool:
    """try: import ... except: ..., or if ...: def ...; not `if __name__ == ...`."""
    if isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
        return False
    if not isinstance(node, ast.If | ast.Try):
        return False
    return any(isinstance(child, KEPT[:5]) for child in ast.walk(node))


def defines(code: str, name: str) -> bool:
    """Whether the top level binds `name` to a function, class or value."""
    tree = parse(code)
    if tree is None:
        return re.search(rf"^(async\s+)?def\s+{re.escape(name)}\b", code, re.MULTILINE) is not None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name == name:
                return True
        elif isinstance(node, ast.Assign):
            if any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return True
        elif isinstance(node, ast.ImportFrom | ast.Import) and any(
            (alias.asname or alias.name) == name for alias in node.names
        ):
            return True
    return False


def chat_code(text: str, entry_point: str, fenced: bool = False) -> str:
    """The code of a chat answer: definitions at top level, or an indented function body.

    fenced: the answer was begun inside a code block (its opening fence is in the prompt).
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if fenced:
        closing = FENCE.search(text)
        inside = text[: closing.start()] if closing is not None else text
        candidates = [inside, *fenced_blocks(text[closing.start() :] if closing else "")]
    else:
        candidates = fenced_blocks(text) or [_from_first_code_line(text)]
    candidates = [_unindented(c.strip("\n")) for c in candidates if c.strip()] or [text]
    for candidate in candidates:
        code = longest_prefix(candidate)
        if defines(code, entry_point):
            # Blocks before may hold imports and helpers; definitions repeated later win.
            return _with_earlier(candidates, candidate, code)
    body = longest_prefix_of_body(candidates[0])
    return body if body is not None else definitions(longest_prefix(candidates[0]))


def _with_earlier(candidates: list[str], chosen: str, code: str) -> str:
    parts = []
    for candidate in candidates:
        if candidate is chosen:
            break
        if parse(candidate) is not None:
            kept = definitions(candidate)
            if kept != candidate or parse(kept) is not None:
                parts.append(kept)
    return "\n".join([*parts, definitions(code)])


def _from_first_code_line(text: str) -> str:
    """Without a fence: from the first line that begins an import or a definition."""
    found = re.search(r"^(from\s+\w|import\s+\w|def\s+\w|class\s+\w|@\w|async\s+def)", text, re.M)
    return text[found.start() :] if found else text


def _unindented(code: str) -> str:
    """Code that is indented as a whole (in a list, say), unless it is a function's body."""
    plain = textwrap.dedent(code)
    if re.match(r"(from|import|def|class|@|async)\b", plain.lstrip("\n")):
        return plain
    return code


def longest_prefix_of_body(text: str) -> str | None:
    """text as the indented body of a function (its longest prefix that parses), or None."""
    body = textwrap.indent(textwrap.dedent(text), "    ")
    lines = body.split("\n")
    for cut in range(min(len(lines), MAX_CUT_LINES)):
        candidate = "\n".join(lines[: len(lines) - cut])
        if candidate.strip() and parse("def _():\n" + candidate) is not None:
            has_return = re.search(r"\b(return|yield)\b", candidate) is not None
            return candidate + "\n" if has_return else None
    return None


def is_body(code: str, entry_point: str) -> bool:
    """Whether `chat_code` gave a function's body rather than definitions."""
    return code.startswith("    ") and not defines(code, entry_point)
