"""Solved tasks that are shown to a model before the one it is to solve."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.common.rows import read_rows
from apr.eval.code.prefixes import parse

OWN = "exemplars-1.jsonl"


@dataclass(frozen=True)
class Exemplar:
    """A solved task. prompt: a function's def line and docstring, or the words of a task for a
    program that reads standard input. solution: the whole function or program. plan: what comes
    before the code where a strategy plans; empty where none does.
    """

    prompt: str
    solution: str
    plan: str = ""

    @property
    def is_function(self) -> bool:
        return _stub(self.prompt) is not None

    def code_block(self) -> str:
        return f"```python\n{self.solution.strip()}\n```"

    def continued(self) -> str:
        """The prompt and what a base model is to write after it. Raises UsageError."""
        stub, tree = _stub(self.prompt), parse(self.solution)
        found = [n for n in tree.body if isinstance(n, ast.FunctionDef)] if tree else []
        same = next((n for n in found if stub is not None and n.name == stub.name), None)
        if same is None or tree is None:
            raise UsageError(
                f"--exemplars: {self.prompt.strip().partition(chr(10))[0]!r} is no def line with a"
                " docstring that its solution defines",
                "base prompts are continued and need one; or --mode chat",
            )
        body = same.body[1:] if len(same.body) > 1 and _is_text(same.body[0]) else same.body
        lines = self.solution.split("\n")
        inside = lines[body[0].lineno - 1 : same.end_lineno]
        # What the solution has besides the function: before it, and after it.
        before, after = lines[: same.lineno - 1], lines[same.end_lineno :]
        return "\n".join([*before, self.prompt.rstrip(), *inside, *after]).strip() + "\n\n\n"


def load_exemplars(path: Path | None, plans: str = "") -> tuple[Exemplar, ...]:
    """The exemplars of a file, or our own. plans: the strategy whose plans they need, as field
    `plan` or one named after it; "" if none are shown. Raises UsageError.
    """
    found = []
    for where, row in _own() if path is None else _given(path):
        plan = next((f for f in ("plan", plans) if isinstance(row.get(f), str)), "plan")
        for field in ("prompt", "solution", *([plan] if plans else [])):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UsageError(f"{where} has no text in field {field!r}")
        found.append(Exemplar(row["prompt"], row["solution"], row[plan] if plans else ""))
    if not found:
        raise UsageError(f"--exemplars {path} has no exemplars")
    return tuple(found)


def fitting(exemplars: Sequence[Exemplar], function: bool) -> list[Exemplar]:
    """Those that solve with a function (or else with a program); all, if none of them does."""
    return [e for e in exemplars if e.is_function == function] or list(exemplars)


def _own() -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = (resources.files("apr.eval.strategies") / "templates" / OWN).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        yield f"{OWN} line {number}", json.loads(line)


def _given(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise UsageError(f"--exemplars {path}: no such file")
    for number, row in read_rows(path):
        yield f"{path} line {number}", row


def _stub(prompt: str) -> ast.FunctionDef | None:
    """The last function of a prompt that is code, its body missing or a docstring."""
    for ending in ("\n    ...\n", "\n"):
        tree = parse(prompt.rstrip() + ending)
        if tree is not None and tree.body and isinstance(tree.body[-1], ast.FunctionDef):
            return tree.body[-1]
    return None


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
