"""What a piece of a module needs of the rest: the imports, constants and helpers that make it a
program of its own. Read from the syntax tree and Python's own scope analysis; nothing is executed.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import textwrap
import warnings
from collections.abc import Iterator

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BUILT_IN = frozenset({*dir(builtins), "__name__", "__class__"})
LAZY_ANNOTATIONS = "from __future__ import annotations"
MOST_STATEMENTS = 8  # that go along with a definition


class Module:
    """A parsed module. lines: its text, split at \\n."""

    def __init__(self, tree: ast.Module, lines: list[str]) -> None:
        self._lines = lines
        self._imports: dict[str, list[str]] = {}
        self._statements: dict[str, list[ast.stmt]] = {}
        self._free: dict[int, set[str] | None] = {}
        self._lazy_annotations = any(
            isinstance(node, ast.ImportFrom) and ast.unparse(node) == LAZY_ANNOTATIONS
            for node in tree.body
        )
        for node in tree.body:
            self._add(node)

    def code(self, node: ast.stmt) -> str:
        """The lines of a statement, decorators included, without its indentation."""
        lines = "\n".join(self._lines[first_line(node) - 1 : node.end_lineno])
        return textwrap.dedent(lines) if node.col_offset else lines

    def context(self, node: ast.stmt, owner: str = "") -> str | None:
        """The statements of the module that one of its statements needs, imports first, then in
        their order. owner: the class of a method, which does not go along.

        None if that is more than a few, or not plain: names bound in an `if` or `try`, twice, by
        relative or star imports, or not at all.
        """
        imports: set[str] = set()
        needed: dict[int, ast.stmt] = {}
        open_ends = [node]
        while open_ends:
            statement = open_ends.pop()
            free = self._free_names(statement)
            if free is None:
                return None
            for name in free - {owner}:
                bound_by = self._statements.get(name, [])
                if name in self._imports and not bound_by:
                    imports.update(self._imports[name])
                elif len(bound_by) != 1 or name in self._imports:
                    return None
                elif bound_by[0] is node:
                    if not isinstance(statement, DEFINITIONS):
                        return None  # a constant made with what it would have to precede
                elif bound_by[0].lineno not in needed:
                    needed[bound_by[0].lineno] = bound_by[0]
                    open_ends.append(bound_by[0])
            if len(needed) > MOST_STATEMENTS:
                return None
        if self._lazy_annotations and _annotates_with_own([node, *needed.values()]):
            imports.add(LAZY_ANNOTATIONS)
        helpers = [self.code(needed[line]) for line in sorted(needed)]
        above = ["\n".join(sorted(imports, key=_import_order))] if imports else []
        return "\n\n\n".join(above + helpers)

    def _free_names(self, node: ast.stmt) -> set[str] | None:
        if id(node) not in self._free:
            free = free_names(self.code(node))
            self._free[id(node)] = None if free is None else free | _quoted_names(node) - BUILT_IN
        return self._free[id(node)]

    def _add(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                self._imports.setdefault(name, []).append(ast.unparse(ast.Import([alias])))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                line = ast.unparse(ast.ImportFrom(node.module, [alias], 0))
                self._imports.setdefault(alias.asname or alias.name, []).append(line)
        elif isinstance(node, DEFINITIONS):
            self._statements.setdefault(node.name, []).append(node)
        else:
            plain = isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for one in ast.walk(node):
                if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store | ast.Del):
                    # Bound in a way that one statement does not tell: counted twice.
                    bound = self._statements.setdefault(one.id, [])
                    bound += [node] if plain else [node, node]
                elif isinstance(one, DEFINITIONS):
                    self._statements.setdefault(one.name, []).extend([node, node])


def first_line(node: ast.stmt) -> int:
    """Of a statement, its decorators included, from 1."""
    decorators = node.decorator_list if isinstance(node, DEFINITIONS) else []
    return min([node.lineno, *(one.lineno for one in decorators)])


def _annotates_with_own(statements: list[ast.stmt]) -> bool:
    """Whether an annotation names something these statements define, perhaps further down."""
    own = {node.name for node in statements if isinstance(node, DEFINITIONS)}
    named = (
        node
        for statement in statements
        for annotation in _annotations(statement)
        for node in ast.walk(annotation)
    )
    return any(isinstance(node, ast.Name) and node.id in own for node in named)


def _annotations(statement: ast.stmt) -> Iterator[ast.expr]:
    for node in ast.walk(statement):
        for field in ("annotation", "returns"):
            if isinstance(annotation := getattr(node, field, None), ast.expr):
                yield annotation


def _quoted_names(statement: ast.stmt) -> set[str]:
    """Names in annotations that are quoted, or have quoted parts; not what a Literal lists."""
    names: set[str] = set()
    open_ends: list[ast.AST] = list(_annotations(statement))
    while open_ends:
        node = open_ends.pop()
        if isinstance(node, ast.Subscript) and "Literal" in ast.unparse(node.value):
            continue
        open_ends += ast.iter_child_nodes(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= free_names(node.value.strip()) or set()
    own = {node.name for node in ast.walk(statement) if isinstance(node, DEFINITIONS)}
    return names - own


def _import_order(line: str) -> tuple[bool, str]:
    return line != LAZY_ANNOTATIONS, line


def free_names(code: str) -> set[str] | None:
    """The names a program uses and neither binds nor finds among the builtins; None if it does
    not compile by itself. By Python's own scope analysis.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top = symtable.symtable(code, "<definition>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    scopes = list(top.get_children())
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        used |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
    return used - bound - BUILT_IN
