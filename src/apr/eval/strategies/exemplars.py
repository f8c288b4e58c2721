"""Solved tasks that are shown to a model before the one it is to solve, and the texts with places
to fill in (Jinja, our own or a user's) that show them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from apr.common.errors import UsageError
from apr.common.rows import read_rows
from apr.eval.code.prefixes import parse

# A copied template may come from anywhere.
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


@dataclass(frozen=True)
class Template:
    """name: of its file."""

    name: str
    text: str

    def render(self, **values: object) -> str:
        """The text with its values. Raises UsageError for what goes wrong in it."""
        try:
            return _ENVIRONMENT.from_string(self.text).render(**values)
        except Exception as error:  # it is a program, and raises what programs do
            raise UsageError(f"prompt template {self.name}: {error}") from None


def load_templates(
    strategy: str, own: Sequence[tuple[str, frozenset[str]]], given: Sequence[Path]
) -> tuple[Template, ...]:
    """A strategy's templates. own: file and the names it uses, of each. given: files that take
    the place of the first ones. Raises UsageError.
    """
    if len(given) > len(own):
        raise UsageError(
            f"`prompt_template` {given[len(own)]}: strategy {strategy} has"
            f" {len(own) or 'no'} template{'s' * (len(own) > 1)}"
        )
    found = [_read(path) for path in given]
    for template, (_, names) in zip(found, own, strict=False):
        _check(template, names)
    found += [own_template(file) for file, _ in own[len(given) :]]
    if len({template.name for template in found}) < len(found):
        raise UsageError(f"`prompt_template`: two files are named {found[0].name}", "rename one")
    return tuple(found)


def own_template(file: str) -> Template:
    folder = resources.files("apr.eval.strategies") / "templates"
    return Template(file, (folder / file).read_text(encoding="utf-8"))


def _read(path: Path) -> Template:
    if not path.is_file():
        raise UsageError(f"`prompt_template` {path}: no such file")
    try:
        return Template(path.name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"`prompt_template` {path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"`prompt_template` {path}: {error.strerror}") from None


def _check(template: Template, names: frozenset[str]) -> None:
    """That it uses these names, and no others."""
    try:
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(template.text))
    except TemplateError as error:
        raise UsageError(f"prompt template {template.name}: {error}") from None
    used -= set(_ENVIRONMENT.globals)
    for name in sorted(names - used):
        raise UsageError(f"prompt template {template.name} lacks {{{{ {name} }}}}")
    for name in sorted(used - names):
        raise UsageError(
            f"prompt template {template.name}: {name!r} is undefined",
            f"it can use {', '.join(sorted(names))}",
        )


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
                f"`exemplars`: {self.prompt.strip().partition(chr(10))[0]!r} is no def line with a"
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
        raise UsageError(f"`exemplars` {path} has no exemplars")
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
        raise UsageError(f"`exemplars` {path}: no such file")
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
