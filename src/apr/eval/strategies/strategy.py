"""Prompt strategies: what is sent to the model besides the benchmark's own question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from apr.common.errors import UsageError
from apr.eval.benchmarks.task import Benchmark, Prompt, PromptStyle, Task
from apr.eval.strategies.exemplars import (
    Exemplar,
    Template,
    fitting,
    load_exemplars,
    load_templates,
)


class _Form(NamedTuple):
    """templates: file and the names it uses, in the order in which a model is asked. plans: a
    plan comes before the code. shots: our exemplars are shown if no others are named.
    """

    templates: tuple[tuple[str, frozenset[str]], ...] = ()
    plans: bool = False
    shots: bool = False


_QUESTION = frozenset({"question"})
FORMS: dict[str, _Form] = {
    "standard": _Form(),
    "few-shot": _Form(shots=True),
    "scot": _Form((("scot-1.jinja", _QUESTION),), plans=True),
    "scot-two-step": _Form(
        (("scot-plan-1.jinja", _QUESTION), ("scot-code-1.jinja", _QUESTION | {"plan"})),
        plans=True,
    ),
    "cgo": _Form((("cgo-1.jinja", _QUESTION),), plans=True),
    "reflexion": _Form((("reflexion-1.jinja", frozenset({"failures"})),)),
}
ALIASES = {
    "structured-cot": "scot",
    "structured-chain-of-thought": "scot",
    "scot-one-step": "scot",
    "scot-2": "scot-two-step",
    "chain-of-grounded-objectives": "cgo",
    "fewshot": "few-shot",
    "zero-shot": "standard",
}
THINKING_TOKENS = 512  # what a plan may take, on top of the benchmark's limit
ROUNDS = 2  # of repair, by default


@dataclass(frozen=True)
class Strategy:
    """name: one of FORMS. system: a system text of the user's. rounds: of repair, for reflexion."""

    name: str = "standard"
    templates: tuple[Template, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    system: str = ""
    rounds: int = 0

    @property
    def plans(self) -> bool:
        return FORMS[self.name].plans

    @property
    def extra_tokens(self) -> int:
        """New tokens a sample needs more than the benchmark says. (Each of two steps has its own
        limit.)
        """
        return THINKING_TOKENS if self.plans and len(self.templates) == 1 else 0

    def describe(self) -> dict[str, Any]:
        """What tells runs apart; empty for the standard one."""
        found: dict[str, Any] = {} if self.name == "standard" else {"name": self.name}
        for template in self.templates:
            found[template.name] = _digest(template.text)
        if self.exemplars:
            rows = [[e.prompt, e.solution, *([e.plan] if e.plan else [])] for e in self.exemplars]
            found["exemplars"] = _digest(json.dumps(rows))
        if self.system:
            found["system"] = self.system
        if self.rounds:
            found["rounds"] = self.rounds
        return found

    def style(self, style: PromptStyle) -> PromptStyle:
        """The style its answers are read in. Raises UsageError where it does not fit."""
        if style.mode == "chat":
            # Where words come before the code, no answer can be begun with code.
            return replace(style, prefill=style.prefill and not self.templates)
        if self.name == "few-shot" and style.mode != "base":
            raise UsageError(f"`prompt_strategy` few-shot is not for mode {style.mode}")
        if self.templates or self.system:
            what = f"`prompt_strategy` {self.name}" if self.templates else "`system`"
            raise UsageError(
                f"{what} needs a chat model and benchmark, not mode {style.mode}",
                "`mode` chat, where there is one",
            )
        return style

    def prompt(
        self, benchmark: Benchmark, task: Task, style: PromptStyle, plan: str | None = None
    ) -> Prompt:
        """What the model is asked first or, with the plan it made, next (scot-two-step). style:
        as `style` gave it. Raises UsageError for exemplars that do not fit.
        """
        if (self.templates or self.exemplars) and not benchmark.writes_code:
            raise UsageError(
                f"`prompt_strategy` {self.name} asks for programs, {benchmark.name} for no program",
                "`prompt_strategy` standard",
            )
        own = benchmark.prompt(task, style)
        if own.messages is None:
            return self._continued(own, benchmark)
        *before, question = own.messages
        step = int(plan is not None)
        turns: list[dict[str, Any]] = []
        for exemplar in fitting(self.exemplars, function=task.entry_point != ""):
            asked = _question(benchmark, task, exemplar, style, question["content"])
            answer = self._answer(exemplar, step, own.prefill)
            turns += [
                {"role": "user", "content": self._asked(asked, step, exemplar.plan)},
                {"role": "assistant", "content": answer},
            ]
        content = self._asked(question["content"], step, plan or "")
        messages = with_system([*before, *turns, {**question, "content": content}], self.system)
        if style.merge_system:
            messages = merged_system(messages)
        return replace(own, messages=messages)

    def _continued(self, own: Prompt, benchmark: Benchmark) -> Prompt:
        """A base prompt behind exemplars."""
        if self.exemplars and benchmark.base_examples:
            raise UsageError(
                f"`prompt_strategy` few-shot: base prompts of {benchmark.name} show solved"
                " problems already",
                "`mode` chat, or `prompt_strategy` standard",
            )
        shots = [e.continued() for e in fitting(self.exemplars, function=True)]
        return replace(own, text="".join(shots) + (own.text or ""))

    def _asked(self, question: str, step: int, plan: str) -> str:
        if not self.plans:
            return question
        values = {"question": question.rstrip(), "plan": plan.strip()}
        _, needed = FORMS[self.name].templates[step]
        return self.templates[step].render(**{name: values[name] for name in needed})

    def _answer(self, exemplar: Exemplar, step: int, prefill: str) -> str:
        """How an exemplar's question is answered."""
        if prefill:
            return f"{prefill}{exemplar.solution.strip()}\n```"
        code = exemplar.code_block()
        if len(self.templates) == 2:
            return code if step else exemplar.plan.strip()
        return f"{exemplar.plan.strip()}\n\n{code}" if self.plans else code


def load_strategy(
    name: str = "standard",
    system: str = "",
    exemplars: Path | None = None,
    templates: Sequence[Path] = (),
    rounds: int | None = None,
) -> Strategy:
    """A strategy by name or alias. exemplars: JSON lines with `prompt`, `solution` and, for a
    strategy that plans, `plan`; "own" are ours. templates: files in place of its own, in order.
    Raises UsageError.
    """
    key = ALIASES.get(name, name)
    if key not in FORMS:
        raise UsageError(f"`prompt_strategy` {name} is unknown", f"one of {', '.join(FORMS)}")
    form = FORMS[key]
    if exemplars is not None and not (form.shots or form.plans):
        raise UsageError(f"`exemplars`: strategy {key} takes none", "`prompt_strategy` few-shot")
    if rounds is not None and (key != "reflexion" or rounds < 1):
        raise UsageError(f"`rounds` {rounds}", "1 or more, with `prompt_strategy` reflexion")
    plans = key.partition("-")[0] if form.plans else ""  # both forms of scot plan alike
    own = exemplars is None or exemplars == Path("own")
    shown = form.shots or exemplars is not None
    return Strategy(
        name=key,
        templates=load_templates(key, form.templates, templates),
        exemplars=load_exemplars(None if own else exemplars, plans) if shown else (),
        system=system,
        rounds=(rounds or ROUNDS) if key == "reflexion" else 0,
    )


def with_system(messages: Sequence[Mapping[str, Any]], system: str) -> list[dict[str, Any]]:
    """Messages with a system text first; one that is there already comes after it."""
    found = [dict(message) for message in messages]
    if not system:
        return found
    if found[0]["role"] == "system":
        found[0]["content"] = f"{system}\n\n{found[0]['content']}"
        return found
    return [{"role": "system", "content": system}, *found]


def merged_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the system text at the beginning of the user's first turn."""
    found = [dict(message) for message in messages]
    if found[0]["role"] != "system":
        return found
    system, first, *rest = found
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _question(
    benchmark: Benchmark, task: Task, exemplar: Exemplar, style: PromptStyle, real: str
) -> str:
    """An exemplar asked in the benchmark's words. real: the task's own question."""
    asked = benchmark.exemplar_question(exemplar.prompt)
    if asked is not None:
        return asked
    messages = benchmark.prompt(replace(task, prompt=exemplar.prompt), style).messages
    assert messages is not None
    if messages[-1]["content"] == real:  # it is not made of the task's prompt
        raise UsageError(
            f"exemplars: {benchmark.name} does not say how they are asked",
            "give the benchmark a method exemplar_question(prompt)",
        )
    return messages[-1]["content"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
