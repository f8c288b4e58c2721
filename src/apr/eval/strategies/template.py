"""Texts with places to fill in (Jinja), our own or a user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from apr.common.errors import UsageError

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
            f"--prompt-template {given[len(own)]}: strategy {strategy} has"
            f" {len(own) or 'no'} template{'s' * (len(own) > 1)}"
        )
    found = [_read(path) for path in given]
    for template, (_, names) in zip(found, own, strict=False):
        _check(template, names)
    found += [own_template(file) for file, _ in own[len(given) :]]
    if len({template.name for template in found}) < len(found):
        raise UsageError(f"--prompt-template: two files are named {found[0].name}", "rename one")
    return tuple(found)


def own_template(file: str) -> Template:
    folder = resources.files("apr.eval.strategies") / "templates"
    return Template(file, (folder / file).read_text(encoding="utf-8"))


def _read(path: Path) -> Template:
    if not path.is_file():
        raise UsageError(f"--prompt-template {path}: no such file")
    try:
        return Template(path.name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"--prompt-template {path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"--prompt-template {path}: {error.strerror}") from None


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
