"""Prompts of each strategy, strategies of several turns, and what tells their runs apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.humaneval import HumanEval
from apr.eval.benchmarks.task import PromptStyle
from apr.eval.generators import Answer, Ask
from apr.eval.run.eval_settings import Asking
from apr.eval.run.evaluate import evaluate
from apr.eval.run.identity import shown_prompts
from apr.eval.strategies.checks import failures, visible_check
from apr.eval.strategies.exemplars import fitting
from apr.eval.strategies.strategy import (
    FORMS,
    Strategy,
    load_strategy,
    merged_system,
    with_system,
)
from apr.eval.strategies.turns import TOGETHER
from apr.sandbox import Sandbox

from ..runs import SETTINGS, Canned
from ..shared import shared_data

CHAT = PromptStyle("chat")


@pytest.fixture(scope="module")
def humaneval() -> HumanEval:
    return HumanEval()


def messages(benchmark: Any, strategy: Strategy, style: PromptStyle = CHAT) -> list[dict]:
    task = next(iter(benchmark.tasks.values()))
    found = strategy.prompt(benchmark, task, strategy.style(style)).messages
    assert found is not None
    return found


def test_standard_is_the_benchmarks_own(humaneval: HumanEval) -> None:
    task = humaneval.tasks["HumanEval/0"]
    assert Strategy().prompt(humaneval, task, CHAT) == humaneval.prompt(task, CHAT)
    assert Strategy().describe() == {}


@pytest.mark.parametrize("name", ["scot", "cgo", "scot-two-step"])
def test_thinking_comes_first_so_nothing_is_begun(humaneval: HumanEval, name: str) -> None:
    strategy = load_strategy(name)
    task = humaneval.tasks["HumanEval/0"]
    own = humaneval.prompt(task, replace(CHAT, prefill=False))
    asked = strategy.prompt(humaneval, task, strategy.style(CHAT))
    assert own.messages is not None and asked.messages is not None
    assert asked.prefill == "" and asked.stop == ()
    assert asked.messages[-1]["content"].startswith(own.messages[-1]["content"].rstrip())
    added = asked.messages[-1]["content"].removeprefix(own.messages[-1]["content"].rstrip())
    words = {"scot": "branch", "scot-two-step": "Do not write Python yet", "cgo": "objectives"}
    assert words[name] in added
    assert ("```python" in added) == (name != "scot-two-step")


def test_few_shot_asks_exemplars_like_the_task(humaneval: HumanEval) -> None:
    strategy = load_strategy("few-shot")
    found = messages(humaneval, strategy)
    assert [m["role"] for m in found] == ["user", "assistant"] * 3 + ["user"]
    assert "longest_plateau" in found[0]["content"]
    assert found[0]["content"].partition("```")[0] == found[-1]["content"].partition("```")[0]
    assert all(m["content"].endswith("```") for m in found if m["role"] == "assistant")
    base = strategy.prompt(humaneval, humaneval.tasks["HumanEval/0"], PromptStyle("base", "keep"))
    assert base.text is not None
    assert base.text.endswith(humaneval.tasks["HumanEval/0"].prompt)
    scope: dict[str, Any] = {}
    exec(base.text.removesuffix(humaneval.tasks["HumanEval/0"].prompt), scope)
    assert scope["longest_plateau"]([7, 7, 2, 2, 2, 9]) == 3
    assert scope["longest_plateau"]([]) == 0
    assert scope["seat_label"](2, 0) == "C1"
    assert scope["overdue"]({"atlas": 4, "bible": 9, "comics": 4}, 7) == ["atlas", "comics"]
    assert scope["seat_label"].__doc__


def test_few_shot_where_the_question_is_not_made_of_the_prompt() -> None:
    file = shared_data("livecodebench/livecodebench-release_v1-sample40.jsonl.gz")
    found = messages(load_benchmark("livecodebench", file), load_strategy("few-shot"))
    assert found[0]["role"] == "system"
    assert "longest_plateau" in found[1]["content"] and "overdue" in found[5]["content"]


FILES = (
    *("humaneval/HumanEval.jsonl.gz", "mbpp/mbpp.jsonl.gz"),
    *("bigcodebench/BigCodeBench-v0.1.0-sample150.jsonl.gz",),
    *("livecodebench/livecodebench-release_v1-sample40.jsonl.gz",),
)


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@pytest.mark.parametrize("file", FILES)
def test_exemplars_share_nothing_with_benchmarks(file: str) -> None:
    import gzip

    own: set[tuple[str, ...]] = set()
    for exemplar in load_strategy("few-shot").exemplars:
        own |= grams(exemplar.prompt + exemplar.solution, 7)
    with gzip.open(shared_data(file), "rt") as lines:
        for line in lines:
            assert not own & grams(line, 7)


def test_system_messages(humaneval: HumanEval) -> None:
    found = messages(humaneval, load_strategy(system="Be brief."))
    assert found[0] == {"role": "system", "content": "Be brief."}
    both = with_system([{"role": "system", "content": "Old."}, {"role": "user", "content": "x"}],
                       "New.")  # fmt: skip
    assert both[0]["content"] == "New.\n\nOld."


def test_own_templates_and_exemplars(tmp_path: Path, humaneval: HumanEval) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ question }}\nThink, {{ 'then' }} write.")
    strategy = load_strategy("scot", templates=[template])
    assert messages(humaneval, strategy)[-1]["content"].endswith("Think, then write.")
    assert strategy.describe()["mine.jinja"] != load_strategy("scot").describe()["scot-1.jinja"]
    rows = tmp_path / "shots.jsonl"
    rows.write_text(json.dumps({"prompt": "def f():\n", "solution": "def f():\n    pass\n"}))
    strategy = load_strategy("few-shot", exemplars=rows)
    assert len(messages(humaneval, strategy)) == 3
    assert strategy.describe() != load_strategy("few-shot").describe()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "magic"}, "`prompt_strategy` magic is unknown"),
        ({"name": "reflexion", "exemplars": Path("x")}, "takes none"),
        ({"name": "few-shot", "exemplars": Path("nowhere")}, "no such file"),
        ({"name": "few-shot", "templates": [Path("x")]}, "has no template"),
        ({"name": "scot", "templates": [Path("nowhere")]}, "no such file"),
        ({"name": "scot", "rounds": 2}, "`rounds` 2"),
        ({"name": "reflexion", "rounds": 0}, "`rounds` 0"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_strategy(**arguments)


@pytest.mark.parametrize("text", ["{{ unknown }}", "{{ question }}{{ more }}", "{% if %}"])
def test_templates_that_cannot_be_used(tmp_path: Path, text: str, humaneval: HumanEval) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"prompt template bad\.jinja"):
        messages(humaneval, load_strategy("cgo", templates=[path]))


@pytest.mark.parametrize("name", ["scot", "scot-two-step", "cgo", "reflexion"])
def test_base_models_do_not_think(name: str) -> None:
    with pytest.raises(UsageError, match=f"strategy` {name} needs a chat model and benchmark"):
        load_strategy(name).style(PromptStyle("base"))
    with pytest.raises(UsageError, match="`system` needs a chat model"):
        load_strategy(system="x").style(PromptStyle("base"))


def test_every_name_and_alias_is_known() -> None:
    for name in (*FORMS, "structured-cot", "chain-of-grounded-objectives", "zero-shot"):
        assert load_strategy(name).name in FORMS
    for name, form in FORMS.items():
        assert len(load_strategy(name).templates) == len(form.templates)


@pytest.mark.parametrize("name", ["scot", "scot-two-step", "cgo"])
def test_plans_can_be_shown_by_exemplars(humaneval: HumanEval, name: str) -> None:
    strategy = load_strategy(name, exemplars=Path("own"))
    task = humaneval.tasks["HumanEval/0"]
    found = messages(humaneval, strategy)
    answers = [m["content"] for m in found if m["role"] == "assistant"]
    assert len(answers) == 3
    plan = strategy.exemplars[0].plan
    assert plan and answers[0].startswith(plan)
    assert ("```python" in answers[0]) == (name != "scot-two-step")
    if name == "scot-two-step":
        style = strategy.style(CHAT)
        second = strategy.prompt(humaneval, task, style, plan="the plan itself").messages
        assert second is not None
        assert plan in second[0]["content"] and "```python" in second[1]["content"]
        assert "the plan itself" in second[-1]["content"]


def test_exemplars_that_are_programs_go_with_tasks_that_are(tmp_path: Path) -> None:
    rows = tmp_path / "shots.jsonl"
    program = {"prompt": "Read a number, print its double.", "solution": "print(2 * int(input()))"}
    function = {"prompt": 'def f():\n    """One."""\n', "solution": "def f():\n    return 1\n"}
    rows.write_text("\n".join(map(json.dumps, [program, function])))
    exemplars = load_strategy("few-shot", exemplars=rows).exemplars
    assert [e.is_function for e in exemplars] == [False, True]
    assert fitting(exemplars, function=False) == [exemplars[0]]
    assert fitting(exemplars, function=True) == [exemplars[1]]
    assert fitting(exemplars[:1], function=True) == [exemplars[0]]


def test_base_prompts_that_show_problems_take_no_more() -> None:
    mbpp = load_benchmark("mbpp", shared_data("mbpp/mbpp.jsonl.gz"))
    task = next(iter(mbpp.tasks.values()))
    with pytest.raises(UsageError, match="show solved problems already"):
        load_strategy("few-shot").prompt(mbpp, task, PromptStyle("base"))


def test_system_text_moves_where_templates_have_no_such_role(humaneval: HumanEval) -> None:
    strategy = load_strategy(system="Be brief.")
    task = humaneval.tasks["HumanEval/0"]
    found = strategy.prompt(humaneval, task, replace(CHAT, merge_system=True)).messages
    assert found is not None and found[0]["role"] == "user"
    assert found[0]["content"].startswith("Be brief.\n\n")
    assert merged_system([{"role": "user", "content": "x"}]) == [{"role": "user", "content": "x"}]


def test_a_template_without_a_system_role_is_noticed(tmp_path: Path) -> None:
    talker = _Talker(lambda task, sample, said: f"{len(said)} {said[0]['content']}")
    model = replace(talker.model(chat_template="x"), takes_system=False)
    settings = replace(SAMPLED, limit=1, out=tmp_path / "r", asking=Asking(system="Brief"))
    result, _ = evaluate(settings, model)
    assert "system text in the user's turn" in result.settings["prompt"]
    (ask,) = talker.seen[0]
    assert ask.prompt.messages is not None
    assert [m["role"] for m in ask.prompt.messages] == ["user"]


# Several turns. ---------------------------------------------------------------------------------


class _Talker(Canned):
    """Answers by what it is asked last; notes the asks and how many came before each answer."""

    def __init__(self, reply: Any) -> None:
        super().__init__()
        self.reply, self.seen = reply, []  # type: ignore[var-annotated]

    def __call__(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        group = list(asks)
        self.seen.append(group)
        for ask in group:
            for sample in ask.samples:
                text = self.reply(self.tasks[ask.task_id], sample, ask.prompt.messages or [])
                yield Answer(ask.task_id, sample, text, "stop", 10, 5, 0.1)


SAMPLED = replace(SETTINGS, mode="chat")


def test_two_steps(tmp_path: Path) -> None:
    def reply(task: Any, sample: int, said: list[dict]) -> str:
        if "Do not write Python yet" in said[-1]["content"]:
            return f"the plan of {task.task_id}"
        assert f"the plan of {task.task_id}" in said[-1]["content"]
        return f"Here:\n```python\n{task.prompt}{task.canonical_solution}\n```\n"

    talker = _Talker(reply)
    settings = replace(SAMPLED, limit=5, out=tmp_path / "run", asking=Asking("scot-two-step"))
    result, _ = evaluate(settings, talker.model(chat_template="x"))
    assert result.passes[1][0] == 1.0
    assert [len(group) for group in talker.seen] == [5, 5]
    assert result.generation["tokens_generated"] == 50
    assert result.settings["strategy"]["name"] == "scot-two-step"
    assert TOGETHER > 5


def test_reflexion_mends_by_the_examples_shown(tmp_path: Path) -> None:
    """Two of three wrong programs are mended in two rounds; those that were right stay."""

    def reply(task: Any, sample: int, said: list[dict]) -> str:
        turn = sum(message["role"] == "assistant" for message in said)
        number = int(task.task_id.split("/")[1])
        if turn:
            assert "but should give" in said[-1]["content"]
            assert task.entry_point in said[-1]["content"]
        if turn < {0: 0, 1: 1, 2: 2}.get(number, 9):
            body = "    return 'wrong'\n"
            return task.prompt + body
        return f"Mended.\n```python\n{task.prompt}{task.canonical_solution}\n```\n"

    talker = _Talker(reply)
    settings = replace(SAMPLED, limit=4, out=tmp_path / "run", asking=Asking("reflexion"))
    result, _ = evaluate(settings, talker.model(chat_template="x"))
    verdicts = {v.task_id: v.verdict for v in result.verdicts}
    assert verdicts == {
        "HumanEval/0": "passed",
        "HumanEval/1": "passed",
        "HumanEval/2": "passed",
        "HumanEval/3": "failed",
    }
    assert [len(group) for group in talker.seen] == [4, 3, 2]
    assert result.settings["strategy"]["rounds"] == 2


def test_another_strategy_is_another_run(tmp_path: Path) -> None:
    settings = replace(SAMPLED, limit=1, out=tmp_path / "run")
    evaluate(settings, Canned().model(chat_template="x"))
    with pytest.raises(UsageError, match="holds a run with"):
        changed = replace(settings, asking=Asking("few-shot"))
        evaluate(changed, Canned().model(chat_template="x"))


def test_the_prompt_can_be_shown() -> None:
    (found,) = shown_prompts(
        replace(SAMPLED, asking=Asking("cgo")), Canned().model(chat_template="x")
    )
    assert found.messages is not None and "objectives" in found.messages[-1]["content"]


def test_all_that_will_be_asked_can_be_shown() -> None:
    model = Canned().model(chat_template="x")
    two = shown_prompts(replace(SAMPLED, asking=Asking("scot-two-step")), model)
    assert len(two) == 2 and "<the plan>" in str(two[1].messages)
    two = shown_prompts(replace(SAMPLED, asking=Asking("reflexion")), model)
    assert "<an example that fails>" in str(two[1].messages)


def test_repairs_on_public_tests_of_programs() -> None:
    """Standard-input problems are checked by the tests their statement shows, and only these."""
    file = shared_data("livecodebench/livecodebench-release_v1-sample40.jsonl.gz")
    benchmark = load_benchmark("livecodebench", file)
    task = next(t for t in benchmark.tasks.values() if not t.entry_point)
    check = visible_check(benchmark, task, CHAT, "print('never so')", "0")
    assert check is not None
    hidden = benchmark.job(task, "pass", "1").cases
    assert hidden is not None and check.job.cases is not None
    assert 0 < len(check.job.cases()) < len(hidden())
    with Sandbox(workers=1, allow_weak=True) as sandbox:
        (lines,) = failures(sandbox, [check]).values()
    assert lines and lines[0].startswith("It fails: ")
