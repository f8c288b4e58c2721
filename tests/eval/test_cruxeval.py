"""CRUXEval output prediction: prompts, extraction, and verdicts equal to recorded ones."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.cruxeval import CruxEval
from apr.eval.benchmarks.task import PromptStyle
from apr.eval.run.evaluate import evaluate
from apr.eval.run.scoring import score_samples
from apr.eval.strategies.strategy import load_strategy
from apr.hub.data_files import pull_data
from apr.hub.data_registry import find_dataset
from apr.sandbox import Sandbox

from .runs import SETTINGS, Canned
from .shared import shared_data

TRACES = "reasoning/cruxeval-output-cot-qwen2.5-coder-7b-base.jsonl.gz"
# Of the official prompts (prompts.py at commit 190faf1) of all 800 problems, joined by line feeds.
PROMPTS_SHA256 = {
    "cruxeval-output": "69486f8f18cec12c6e87a981ac30c9bc2e25b494a1ab61afdc00a42a8b6d5d0d",
    "cruxeval-output-cot": "54afb6aa4fd37b46dac6966c675280bb4ab524d83a8deade8ccefb46539f6ed3",
}


def traces() -> list[dict[str, Any]]:
    with gzip.open(shared_data(TRACES), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official file, which the traces hold under other names."""
    rows = [
        {"code": r["code"], "input": r["input"], "output": r["expected_output"], "id": r["id"]}
        for r in traces()
    ]
    path = tmp_path_factory.mktemp("cruxeval") / "cruxeval.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def crux(data: Path) -> CruxEval:
    return CruxEval("cruxeval-output", data)


def test_the_data_is_the_published_file(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="apr data pull cruxeval-output fetches it"):
        load_benchmark("cruxeval-output-cot")
    pull_data(find_dataset("cruxeval-output"), data, progress=False)
    for name in PROMPTS_SHA256:
        assert len(load_benchmark(name).tasks) == 800


@pytest.mark.parametrize("name", PROMPTS_SHA256)
def test_prompts_are_the_official_ones(data: Path, name: str) -> None:
    benchmark = CruxEval(name, data)
    style = PromptStyle("base", "keep")
    texts = [benchmark.prompt(task, style).text or "" for task in benchmark.tasks.values()]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == PROMPTS_SHA256[name]
    task = next(iter(benchmark.tasks.values()))
    begun = benchmark.prompt(task, PromptStyle("chat"))
    assert begun.messages is not None
    assert begun.messages[0]["content"] + begun.prefill == texts[0]
    whole = benchmark.prompt(task, PromptStyle("chat", prefill=False))
    assert whole.messages is not None and whole.messages[0]["content"] == texts[0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("assert f([1, 2]) == [2]\n[/ANSWER]\n\n[PYTHON]", "[2]"),
        ("[2]\n[/ANSWER]", "[2]"),
        ("1. It is called.\n[/THOUGHT]\n[ANSWER]\nassert f(1) == 'a b'\n[/ANSWER]", "'a b'"),
        ("[ANSWER]\n3\n", "3"),
        ("assert f(1) == 3 # done", "3"),
        ("so f(1) == 3", "3"),
        # The official extraction takes what is between the first two `==`.
        ("assert f('a==b') == 'b==a'", "'b==a'"),
        ("", ""),
        ("no idea", "no idea"),
    ],
)
def test_answers(crux: CruxEval, text: str, answer: str) -> None:
    task = crux.tasks["sample_0"]
    assert crux.completion(task, text, PromptStyle("base")) == answer


def verdicts(crux: CruxEval, answers: dict[str, tuple[str, str]]) -> dict[str, bool]:
    """Of answers: name -> (task id, answer)."""
    with Sandbox() as sandbox:
        jobs = [
            crux.job(crux.tasks[t], crux.program(crux.tasks[t], {"completion": answer}), name)
            for name, (t, answer) in answers.items()
        ]
        return {outcome.job_id: outcome.passed for outcome in sandbox.run_many(jobs)}


def test_recorded_verdicts(crux: CruxEval) -> None:
    """All 800 answers of a model, as their publisher judged them."""
    rows = traces()
    found = verdicts(crux, {row["id"]: (row["id"], row["answer"]) for row in rows})
    assert found == {row["id"]: row["correct"] for row in rows}
    assert sum(found.values()) == 448


def test_expected_outputs_pass(crux: CruxEval) -> None:
    right = {name: (name, task.canonical_solution) for name, task in crux.tasks.items()}
    assert verdicts(crux, right) == dict.fromkeys(right, True)


def test_what_is_no_prediction_fails(crux: CruxEval) -> None:
    """Officially the first four pass: they run the function, or need not equal its output."""
    sample = "sample_3"  # f('bcksrut', 'q') == 'bcksrutq'
    wrong = [
        "f ('bcksrut', 'q')",
        "f(*('bcksrut', 'q'))",
        "'' or True",
        "type('A', (), {'__eq__': lambda self, other: True})()",
        "f('bcksrut', 'q')",
        "0\nf('bcksrut', 'q')",
        "0\ndef answer():\n    return 'bcksrutq'",
        "''), ('bcksrutq'",
        "__import__('os')._exit(0)",
        "exit()",
        "bcksrutq",
        "'bcksrutq",
        "'a' == 'bcksrutq'",
        "",
    ]
    right = [
        "'bcksrutq'",
        '"bcksrut" + "q"',
        "('bcksrutq')",
        "'bcksrutq', 'as told'",
        " 'bcksrutq' # so",
    ]
    found = verdicts(crux, {answer: (sample, answer) for answer in (*wrong, *right)})
    assert {answer for answer, passed in found.items() if passed} == set(right)


def test_samples_and_files_of_the_official_tools(data: Path, tmp_path: Path) -> None:
    """Its generations are read, and written by a run; rows of answers are read as well."""
    canned = Canned(lambda task, _: f"assert f(1) == {task.canonical_solution}\n[/ANSWER]")
    settings = replace(SETTINGS, benchmark="cruxeval-output", data=data, limit=4, out=tmp_path)
    result, out = evaluate(settings, canned.model())
    assert result.passes[1][0] == 1.0 and "repeats_of_references" not in result.to_json()
    official = out / "generations.json"
    assert json.loads(official.read_text())["sample_3"] == ["'bcksrutq'"]
    rows = tmp_path / "answers.jsonl"
    rows.write_text(
        '{"id": "sample_3", "answer": "\'bcksrutq\'"}\n{"id": "sample_0", "answer": "0"}'
    )
    for path, score in ((official, 1.0), (out / "samples.jsonl", 1.0), (rows, 0.5)):
        again = score_samples(path, "cruxeval-output", data, allow_partial=True, progress=False)
        assert again.passes[1][0] == score
    for text, message in (
        ('{"sample_0": "1"}', "'sample_0' has no list of answers"),
        ('{"nobody": ["1"]}', "task_id 'nobody' is not in cruxeval-output"),
        ('{"id": "sample_0"}', "has neither a 'completion' nor a 'solution' text"),
        ('{"sample_0": ', "is not JSON"),
    ):
        official.write_text(text)
        with pytest.raises(UsageError, match=message):
            score_samples(official, "cruxeval-output", data, allow_partial=True, progress=False)


def test_strategies_that_ask_for_programs_are_refused(crux: CruxEval) -> None:
    task = crux.tasks["sample_0"]
    for name in ("scot", "few-shot", "reflexion"):
        with pytest.raises(UsageError, match="asks for programs, cruxeval-output for no program"):
            load_strategy(name).prompt(crux, task, PromptStyle("chat"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": None}, "line 1 has no text in field 'code'"),
        ({"input": 3}, "line 1 has no text in field 'input'"),
        ({"output": "f(1)"}, "line 1: output 'f.1.' is no literal"),
        ({"output": "("}, "line 1: output '.' is no literal"),
    ],
)
def test_bad_data(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"id": "a", "code": "def f(x): return x", "input": "1", "output": "1"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**row, **change}))
    with pytest.raises(UsageError, match=message):
        CruxEval("cruxeval-output", path)
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row)}")
    with pytest.raises(UsageError, match="line 2: id 'a' occurs twice"):
        CruxEval("cruxeval-output", path)
    path.write_text("")
    with pytest.raises(UsageError, match="has no tasks"):
        CruxEval("cruxeval-output", path)
