"""Programs that are wrong in one place, made from right ones."""

from __future__ import annotations

import ast
import sys


def changed_programs(program: str, count: int) -> list[str]:
    """At most so many programs that differ in one place each, spread over the program."""
    places = sum(_changed(node) is not None for node in ast.walk(ast.parse(program)))
    found = []
    for number in range(0, places, max(1, places // count)):
        mutant = _Mutator(number).visit(ast.parse(program))
        found.append(ast.unparse(ast.fix_missing_locations(mutant)) + "\n")
    return found[:count]


class _Mutator(ast.NodeTransformer):
    """Changes the node of a given number among those that can be changed."""

    def __init__(self, number: int) -> None:
        self.left = number

    def visit(self, node: ast.AST) -> ast.AST:
        changed = _changed(node)
        if changed is not None:
            self.left -= 1
            if self.left < 0:
                self.left = sys.maxsize
                return changed
        return self.generic_visit(node)


def _changed(node: ast.AST) -> ast.AST | None:
    match node:
        case ast.Return(value=ast.expr()):
            return ast.Return(value=ast.Constant(None))
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return ast.Constant(value + 1)
        case ast.Constant(value=str(value)):
            return ast.Constant(value + "x")
        case ast.Compare(left, [ast.Eq()], right):
            return ast.Compare(left, [ast.NotEq()], right)
        case ast.If(test, body, orelse):
            return ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.BinOp(left, ast.Add(), right):
            return ast.BinOp(left, ast.Sub(), right)
        case ast.Raise():
            return ast.Pass()
    return None
