"""Prompt strategies: what is sent to the model besides the benchmark's own question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError

from apr.errors import UsageError
from apr.eval.rows import read_rows
from apr.eval.task import Benchmark, Prompt, PromptStyle, Task

# Name -> its templates, newest version. The first is the first thing a model is asked.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "standard": (),
    "few-shot": (),
    "scot": ("scot-1.jinja",),
    "scot-two-step": ("scot-plan-1.jinja", "scot-code-1.jinja"),
    "cgo": ("cgo-1.jinja",),
    "reflexion": ("reflexion-1.jinja",),
}
ALIASES = {
    "structured-cot": "scot",
    "structured-chain-of-thought": "scot",
    "scot-2": "scot-two-step",
    "chain-of-grounded-objectives": "cgo",
    "fewshot": "few-shot",
    "zero-shot": "standard",
}
EXEMPLARS = "exemplars-1.jsonl"
THINKING_TOKENS = 512  # what a plan may take, on top of the benchmark's limit
ROUNDS = 2  # of repair, by default


@dataclass(frozen=True)
class Exemplar:
    """A solved task: `prompt` as a function with a docstring, `solution` the whole function."""

    prompt: str
    solution: str


@dataclass(frozen=True)
class Strategy:
    """name: one of TEMPLATES. templates: their texts (Jinja), by file name. system: a system
    message of the user's. rounds: of repair, for reflexion.
    """

    name: str = "standard"
    templates: dict[str, str] = field(default_factory=dict)
    exemplars: tuple[Exemplar, ...] = ()
    system: str = ""
    rounds: int = 0

    @property
    def thinks_first(self) -> bool:
        """Whether something comes before the code, so that no answer can be begun for it."""
        return self.name in ("scot", "scot-two-step", "cgo")

    @property
    def extra_tokens(self) -> int:
        return THINKING_TOKENS if self.name in ("scot", "cgo") else 0

    def describe(self) -> dict[str, Any]:
        """What tells runs apart; empty for the standard one."""
        found: dict[str, Any] = {} if self.name == "standard" else {"name": self.name}
        for name, text in self.templates.items():
            found[name] = hashlib.sha256(text.encode()).hexdigest()[:8]
        if self.exemplars:
            text = json.dumps([[e.prompt, e.solution] for e in self.exemplars])
            found["exemplars"] = hashlib.sha256(text.encode()).hexdigest()[:8]
        if self.system:
            found["system"] = self.system
        if self.rounds:
            found["rounds"] = self.rounds
        return found

    def style(self, style: PromptStyle) -> PromptStyle:
        """The style its answers are read in. Raises UsageError where it does not fit."""
        if style.mode == "base" and self.name in ("standard", "few-shot") and not self.system:
            return style
        if style.mode == "chat":
            return replace(style, prefill=style.prefill and not self.thinks_first)
        if self.name == "standard" and not self.system:
            return style
        what = "--system" if self.name in ("standard", "few-shot") else f"strategy {self.name}"
        raise UsageError(f"{what} needs a chat model, not mode {style.mode}", "--mode chat")

    def prompt(self, benchmark: Benchmark, task: Task, style: PromptStyle) -> Prompt:
        """The first thing the model is asked. style: as `style` gave it."""
        own = benchmark.prompt(task, style)
        if own.messages is None:
            return replace(own, text=self._shots() + (own.text or "")) if self.exemplars else own
        *before, question = own.messages
        content = question["content"]
        turns = [
            turn for e in self.exemplars for turn in _turns(benchmark, e, task, style, content)
        ]
        if self.thinks_first:
            content = self.render(0, question=content.rstrip())
        messages = [*before, *turns, {**question, "content": content}]
        return replace(own, messages=with_system(messages, self.system))

    def render(self, number: int, **values: Any) -> str:
        """A template with its values. Raises UsageError for one that cannot be used."""
        name, text = list(self.templates.items())[number]
        environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            return environment.from_string(text).render(**values)
        except TemplateError as error:
            raise UsageError(f"prompt template {name}: {error}") from None

    def _shots(self) -> str:
        """Exemplars before a prompt that is to be continued: functions with their bodies."""
        return "".join(f"{_joined(exemplar).rstrip()}\n\n\n" for exemplar in self.exemplars)


def load_strategy(
    name: str = "standard",
    system: str = "",
    exemplars: Path | None = None,
    template: Path | None = None,
    rounds: int | None = None,
) -> Strategy:
    """A strategy by name or alias. exemplars: JSON lines with `prompt` and `solution`, in place of
    our own. template: a file in place of its first template. Raises UsageError.
    """
    key = ALIASES.get(name, name)
    if key not in TEMPLATES:
        raise UsageError(f"--prompt-strategy {name} is unknown", f"one of {', '.join(TEMPLATES)}")
    templates = {file: _own(file) for file in TEMPLATES[key]}
    if template is not None:
        if not templates:
            raise UsageError(f"--prompt-template: strategy {key} has no template")
        if not template.is_file():
            raise UsageError(f"--prompt-template {template}: no such file")
        rest = list(templates)[1:]
        text = template.read_text(encoding="utf-8")
        templates = {template.name: text, **{file: templates[file] for file in rest}}
    if exemplars is not None and key != "few-shot":
        raise UsageError(f"--exemplars: strategy {key} takes none", "--prompt-strategy few-shot")
    if rounds is not None and (key != "reflexion" or rounds < 1):
        raise UsageError(f"--rounds {rounds}", "1 or more, with --prompt-strategy reflexion")
    return Strategy(
        name=key,
        templates=templates,
        exemplars=_exemplars(exemplars) if key == "few-shot" else (),
        system=system,
        rounds=(rounds or ROUNDS) if key == "reflexion" else 0,
    )


def with_system(messages: Sequence[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    """Messages with a system text first; one that is there already comes after it."""
    found = [dict(message) for message in messages]
    if not system:
        return found
    if found[0]["role"] == "system":
        found[0]["content"] = f"{system}\n\n{found[0]['content']}"
        return found
    return [{"role": "system", "content": system}, *found]


def _own(file: str) -> str:
    folder = resources.files("apr.eval.strategies") / "templates"
    return (folder / file).read_text(encoding="utf-8")


def _exemplars(path: Path | None) -> tuple[Exemplar, ...]:
    if path is None:
        rows = list(enumerate(map(json.loads, _own(EXEMPLARS).splitlines()), 1))
        where = EXEMPLARS
    else:
        if not path.is_file():
            raise UsageError(f"--exemplars {path}: no such file")
        rows, where = list(read_rows(path)), str(path)
    found = []
    for line, row in rows:
        for name in ("prompt", "solution"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise UsageError(f"{where} line {line} has no text in field {name!r}")
        found.append(Exemplar(row["prompt"], row["solution"]))
    if not found:
        raise UsageError(f"{where} has no exemplars")
    return tuple(found)


def _turns(
    benchmark: Benchmark, exemplar: Exemplar, task: Task, style: PromptStyle, real: str
) -> list[dict[str, Any]]:
    """An exemplar asked in the benchmark's words, and answered. real: the task's own question."""
    asked = benchmark.prompt(replace(task, prompt=exemplar.prompt), style)
    assert asked.messages is not None
    question = dict(asked.messages[-1])
    if question["content"] == real:  # a benchmark whose question is not made from the prompt
        question["content"] = (
            f"Complete this Python function:\n```\n{exemplar.prompt.strip()}\n```\n"
        )
    answer = f"```python\n{exemplar.solution.strip()}\n```"
    if asked.prefill:
        answer = f"{asked.prefill}{exemplar.solution.strip()}\n```"
    return [question, {"role": "assistant", "content": answer}]


def _joined(exemplar: Exemplar) -> str:
    """Prompt and body: the solution's def line gives way to the prompt's, which has a docstring."""
    head, _, body = exemplar.solution.partition(":\n")
    return exemplar.prompt + body if head.lstrip().startswith("def ") else exemplar.prompt
