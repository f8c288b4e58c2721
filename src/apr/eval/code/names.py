"""What the statements of a program's top level bind, use and change. Nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
IMPORTS = (ast.Import, ast.ImportFrom)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Use:
    """What a statement has to do with the module's names, also through functions inside it.

    reads: names it takes from there, dotted where attributes are asked for (`sys.exit`); at_once:
    those it takes when it is reached, not when a function inside it runs. changes: names that it
    may alter: attributes and members are set, methods called, or they are declared `global`.
    handed: names that are given to a call, which may alter them. calls: names that are called.
    """

    reads: frozenset[str]
    at_once: frozenset[str]
    changes: frozenset[str]
    handed: frozenset[str]
    calls: frozenset[str]


def bound(node: ast.stmt) -> set[str]:
    """Names a statement of the top level binds there."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    return set(_bound([node]))


def use_of(statement: ast.stmt) -> Use:
    """See `Use`."""
    reads: set[str] = set()
    at_once: set[str] = set()
    changes: set[str] = set()
    handed: set[str] = set()
    calls: set[str] = set()
    todo: list[tuple[ast.AST, frozenset[str], bool]] = [(statement, frozenset(), True)]
    while todo:  # not by recursion: a tree may be as deep as Python's own limit
        node, local, now = todo.pop()
        name = _dotted(node)
        if name is not None:
            if root(name) in local:
                continue
            if isinstance(getattr(node, "ctx", None), ast.Load):
                reads.add(name)
                at_once |= {name} if now else set()
            elif "." in name:
                changes.add(root(name))
            continue
        if isinstance(node, ast.Global):
            changes |= set(node.names)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changes |= _roots([node.value], local)
        elif isinstance(node, ast.Call):
            called = _dotted(node.func)
            if called == "setattr" and node.args and isinstance(node.args[0], ast.Name):
                changes |= _roots(node.args[:1], local)
                todo += ((argument, local, now) for argument in node.args[1:])
                continue
            calls |= {called} if called is not None and root(called) not in local else set()
            changes |= _roots([node.func] if isinstance(node.func, ast.Attribute) else [], local)
            given = [a.value if isinstance(a, ast.Starred) else a for a in node.args]
            handed |= _roots([*given, *(keyword.value for keyword in node.keywords)], local)
        todo += _children(node, local, now)
    return Use(*map(frozenset, (reads, at_once, changes, handed, calls)))


def root(name: str) -> str:
    """The `a` of `a.b.c`."""
    return name.partition(".")[0]


def imported(body: list[ast.stmt]) -> dict[str, str]:
    """Name -> what it stands for, in full, of every import of a program."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def _children(
    node: ast.AST, local: frozenset[str], now: bool
) -> Iterator[tuple[ast.AST, frozenset[str], bool]]:
    """Parts of a node, each with the names that are local there and whether it runs at once."""
    inner: set[int] = set()
    names, now_inside = local, now
    if isinstance(node, FUNCTIONS):
        body: Sequence[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else node.body
        names |= _parameters(node.args) | set(_bound(body, imports=False)) - _declared(body)
        inner, now_inside = set(map(id, body)), False
    elif isinstance(node, _COMPREHENSIONS):
        names |= {n for part in node.generators for n in _targets(part.target)}
        inner = set(map(id, ast.iter_child_nodes(node)))
    for child in ast.iter_child_nodes(node):
        yield (child, names, now_inside) if id(child) in inner else (child, local, now)


def _bound(nodes: Sequence[ast.AST], imports: bool = True) -> Iterator[str]:
    """Names bound by nodes, not by what is inside functions, classes and comprehensions.

    imports: whether imports count. What a function imports is the same module everywhere.
    """
    todo: list[ast.AST] = [*nodes]
    while todo:
        node = todo.pop()
        if isinstance(node, DEFINITIONS):
            yield node.name
        elif isinstance(node, IMPORTS) and imports:
            yield from ((a.asname or a.name).partition(".")[0] for a in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
        if not isinstance(node, (*DEFINITIONS, ast.Lambda)):
            todo += (
                child
                for child in ast.iter_child_nodes(node)
                if not (isinstance(node, ast.comprehension) and child is node.target)
            )


def _targets(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _declared(body: Sequence[ast.AST]) -> set[str]:
    """Names of `global` statements."""
    nodes = (child for node in body for child in ast.walk(node))
    return {name for node in nodes if isinstance(node, ast.Global) for name in node.names}


def _parameters(args: ast.arguments) -> set[str]:
    several = [args.vararg, args.kwarg]
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, several)]
    return {argument.arg for argument in named}


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` for a name and attributes of it; else None."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _roots(nodes: list[ast.expr], local: frozenset[str]) -> set[str]:
    """The names that chains of attributes and members begin with."""
    found = set()
    for node in nodes:
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute | ast.Subscript):
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id not in local:
            found.add(inner.id)
    return found
