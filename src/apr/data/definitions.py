"""Functions and classes of a Python module that can teach: documented, complete, understandable
by themselves. Pure functions; nothing is imported or executed.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from apr.data.context import DEFINITIONS, Module, first_line

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONGEST_INIT = 1500  # characters
FEWEST_WORDS = 5  # of a docstring's prose
FEWEST_NODES = 10  # of a body's syntax tree: `return sorted(set(x))` has 7, a sum over a range 13
# Notes on a project's history, and what Sphinx makes of them, say nothing of what code does.
DIRECTIVE = re.compile(
    r"^([ \t]*)\.\. (?:versionadded|versionchanged|deprecated|deprecated-removed|seealso|index"
    r"|module|moduleauthor|sectionauthor|plot|figure|image)::.*\n(?:(?:\1[ \t]+.*)?\n)*",
    re.MULTILINE,
)
HISTORY = re.compile(r"\b(deprecated|obsolete|for internal use|internal use only)\b", re.I)


@dataclass(frozen=True)
class Definition:
    """A function or class at the top level of a module, or a method of such a class.

    name: of a method, after its class and a dot. owner: the beginning of a method's class, up to
    the end of its `__init__`; "" for others. header: its first line in normal form, with
    annotations and defaults, without decorators. docstring: cleaned. context: the statements of
    its module that it needs, imports first. code: its own lines, decorators first, not indented.
    docstring_lines: first and last line of the docstring within `code`, from 0. key: the same for
    the same code whatever its layout, comments and docstrings.
    """

    name: str
    what: Literal["function", "class", "method"]
    owner: str
    line: int
    header: str
    docstring: str
    context: str
    code: str
    docstring_lines: tuple[int, int]
    key: str

    @property
    def program(self) -> str:
        return f"{self.context}\n\n\n{self.code}" if self.context else self.code


@dataclass(frozen=True)
class Rejected:
    """A definition that is left out, and why in a few words."""

    name: str
    line: int
    reason: str


def definitions(text: str, methods: bool = False) -> Iterator[Definition | Rejected]:
    """The functions and classes at a module's top level, in order; a class' methods after it.

    text: with \\n line ends. Raises SyntaxError if it does not parse.
    """
    tree = _parse(text)
    module = Module(tree, text.split("\n"))
    for node in tree.body:
        if isinstance(node, DEFINITIONS):
            yield _definition(node, module)
        if methods and isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, FUNCTIONS):
                    yield _definition(method, module, node)


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like, of other people's code
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None


def _definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    module: Module,
    owner: ast.ClassDef | None = None,
) -> Definition | Rejected:
    name = f"{owner.name}.{node.name}" if owner else node.name
    reason = _flaw(node)
    if reason:
        return Rejected(name, node.lineno, reason)
    context = module.context(node, owner.name if owner else "")
    if context is None:
        return Rejected(name, node.lineno, "needs more of its module than can go with it")
    docstring, first = node.body[0], first_line(node)
    assert docstring.end_lineno is not None
    what: Literal["class", "function"] = "class" if isinstance(node, ast.ClassDef) else "function"
    return Definition(
        name=name,
        what="method" if owner else what,
        owner=_beginning(owner, module) if owner else "",
        line=node.lineno,
        header=_header(node),
        docstring=clean_docstring(ast.get_docstring(node, clean=False) or ""),
        context=context,
        code=module.code(node),
        docstring_lines=(docstring.lineno - first, docstring.end_lineno - first),
        key=_key(node),
    )


def _beginning(node: ast.ClassDef, module: Module) -> str:
    """A class' first line, the first one of its docstring, and its `__init__` if it is short."""
    lines = [_header(node)]
    docstring = (ast.get_docstring(node) or "").strip().partition("\n")[0]
    if docstring:
        lines.append(f'    """{docstring}"""')
    inits = [one for one in node.body if isinstance(one, FUNCTIONS) and one.name == "__init__"]
    code = module.code(inits[0]) if inits else ""
    if 0 < len(code) <= LONGEST_INIT:
        lines += ["", textwrap.indent(code, "    ")]
    return "\n".join(lines)


def _flaw(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """Why a definition teaches nothing; "" if it may."""
    if node.name.startswith("_"):
        return "private"
    if node.name.lower().startswith("test"):
        return "test"
    docstring = clean_docstring(ast.get_docstring(node, clean=False) or "")
    if not docstring:
        return "no docstring"
    if len(docstring.partition(">>>")[0].split()) < FEWEST_WORDS:
        return f"docstring under {FEWEST_WORDS} words"
    if HISTORY.search(docstring):
        return "deprecated or internal"
    if not docstring.isascii() and sum(map(str.isascii, docstring)) < 0.9 * len(docstring):
        return "docstring not in English"
    if node.body[0].lineno == node.lineno or len(node.body) == 1:
        return "stub"
    if _is_stub(node):
        return "stub"
    nodes = [one for part in node.body[1:] for one in ast.walk(part)]
    if sum(not isinstance(one, ast.expr_context) for one in nodes) < FEWEST_NODES:
        return "trivial"
    return ""


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether nothing is implemented: no statement that does something, in no method."""
    if isinstance(node, ast.ClassDef):
        methods = [one for one in node.body if isinstance(one, DEFINITIONS)]
        return all(_is_stub(method) for method in methods)
    return all(_does_nothing(statement) for statement in node.body)


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    if isinstance(statement, ast.Return):
        return statement.value is None or isinstance(statement.value, ast.Constant)
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, ast.Pass)


def clean_docstring(docstring: str) -> str:
    """Without indentation, Sphinx' notes on versions, and runs of blank lines."""
    text = DIRECTIVE.sub("", inspect.cleandoc(docstring) + "\n")
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _header(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    fields = {name: getattr(node, name) for name in node._fields}
    bare = type(node)(**{**fields, "body": [], "decorator_list": []})
    return ast.unparse(ast.fix_missing_locations(bare)).strip()


def _key(node: ast.AST) -> str:
    """The syntax tree as text, without docstrings."""
    copy = ast.parse(ast.unparse(node))
    for one in ast.walk(copy):
        if isinstance(one, DEFINITIONS) and ast.get_docstring(one, clean=False) is not None:
            one.body = one.body[1:] or [ast.Pass()]
    return ast.dump(copy)
