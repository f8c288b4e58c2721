"""Programs that are the same but for names, comments and layout."""

from __future__ import annotations

import ast
import hashlib

from apr.eval.code.extraction import parse


def normal_form(program: str) -> str | None:
    """Equal for programs whose syntax trees differ in docstrings and the names of parameters and
    local variables only; None for what does not parse.
    """
    tree = parse(program)
    if tree is None:
        return None
    try:
        for node in ast.walk(tree):
            _drop_docstring(node)
        _rename(tree, {})
        text = ast.dump(tree)
    except RecursionError:
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
        return
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]


def _rename(node: ast.AST, names: dict[str, str]) -> None:
    """Number the names that functions bind, in the order they are met; inner ones see outer."""
    if isinstance(node, _FUNCTIONS):
        names = dict(names)
        for name in _bound(node):
            names[name] = f"_{len(names)}"
    for child in ast.iter_child_nodes(node):
        _rename(child, names)
    if isinstance(node, ast.Name):
        node.id = names.get(node.id, node.id)
    elif isinstance(node, ast.arg):
        node.arg = names.get(node.arg, node.arg)
        node.annotation = None
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node.returns = None


def _bound(function: ast.AST) -> list[str]:
    """Parameters and variables of a function, its inner functions' left out, in order."""
    found: dict[str, None] = {}
    foreign: set[str] = set()
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.arg):
            found[node.arg] = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        elif isinstance(node, ast.Global | ast.Nonlocal):
            foreign.update(node.names)
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            todo = [*ast.iter_child_nodes(node), *todo]
    return [name for name in found if name not in foreign]
