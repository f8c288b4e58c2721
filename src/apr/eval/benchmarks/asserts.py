"""What a test's source says about the function it judges. Nothing is executed."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator

_BUILTINS = frozenset(dir(builtins))
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def called_by(tests: ast.Module) -> set[str]:
    """Names that are called in a test."""
    return {
        node.func.id
        for node in ast.walk(tests)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def tested_function(solution: ast.Module, tests: ast.Module) -> str | None:
    """The function of a solution that the asserts call; the last one defined, if several."""
    called = called_by(tests)
    defined = [node.name for node in solution.body if isinstance(node, ast.FunctionDef)]
    return next((name for name in reversed(defined) if name in called), None)


def defines_check(tests: ast.Module) -> bool:
    """Whether a test is a function `check`, as HumanEval's, rather than asserts."""
    return any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tests.body)


def names_of(code: ast.Module | None, known_to_python: bool = False) -> frozenset[str]:
    """Functions a program defines, and what it imports or assigns; not its classes, whose objects
    are no plain data. known_to_python: built-in names as well.
    """
    nodes = [] if code is None else list(ast.walk(code))
    functions = {node.name for node in nodes if isinstance(node, _DEFINITIONS[:2])}
    bound = {name for node in nodes for name in _bound_by(node)}
    return frozenset(functions | bound | (_BUILTINS if known_to_python else set()))


def stands_alone(tests: ast.Module, entry_point: str, known: Collection[str] = ()) -> bool:
    """Whether plain data can carry a test's calls, so that it can run in another process than the
    program. If it hands over a type or a function, or uses names that only the program has, it
    has to run beside it. known: names that it finds there all the same.
    """
    nodes = list(ast.walk(tests))
    helpers = {node.name for node in nodes if isinstance(node, _DEFINITIONS)}
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    aside = {id(name) for node in nodes for name in _looked_at(node)}
    bound = {name for node in nodes for name in _bound_by(node)}
    own = bound | set(known)
    handed_over = {
        id(part)
        for node in nodes
        if isinstance(node, ast.Call) and _is_function(node.func, {entry_point, *bound})
        for argument in node.args
        for part in ast.walk(argument)
    }
    for node in nodes:
        if isinstance(node, ast.Lambda) and id(node) in handed_over:
            return False
        if isinstance(node, ast.Name) and node.id not in own and id(node) not in aside:
            callable_names = {entry_point, *helpers, *_BUILTINS} if id(node) in called else set()
            if node.id not in callable_names:
                return False
    return True


def _is_function(node: ast.expr, names: Collection[str]) -> bool:
    """Whether what is called may be the program's: the entry point, or a parameter of `check`."""
    return isinstance(node, ast.Name) and node.id in names


def _looked_at(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node that name what the test itself looks at (types): no call hands it over."""
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        yield from ast.walk(node.type)
    elif isinstance(node, ast.arg) and node.annotation is not None:
        yield from ast.walk(node.annotation)
    elif isinstance(node, ast.FunctionDef) and node.returns is not None:
        yield from ast.walk(node.returns)
    elif isinstance(node, ast.AnnAssign):
        yield from ast.walk(node.annotation)
    elif isinstance(node, ast.Expr):
        yield node.value  # a name alone, as in HumanEval/129
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("isinstance", "issubclass") and len(node.args) == 2:
            yield from ast.walk(node.args[1])
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot | ast.Eq):
        # `type(answer) is int`: what is compared with a call of `type`.
        left = node.left
        if (
            isinstance(left, ast.Call)
            and isinstance(left.func, ast.Name)
            and left.func.id == "type"
        ):
            yield from node.comparators


def _bound_by(node: ast.AST) -> set[str]:
    """Names a node gives data to: imports, variables, parameters of functions (of lambdas, which
    a call may hand over, not).
    """
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.FunctionDef):
        spec = node.args
        named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
        return {argument.arg for argument in named if argument is not None}
    if isinstance(node, ast.ExceptHandler) and node.name:
        return {node.name}
    return {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
