"""Benchmarks of one's own: rows in a file, and Python files."""

from __future__ import annotations

import gzip
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.humaneval import BASE_STOP, HumanEval
from apr.eval.benchmarks.own import WORDS_STOP, OwnBenchmark
from apr.eval.benchmarks.task import PromptStyle
from apr.eval.history.read import read_run, whole_programs
from apr.eval.run.evaluate import evaluate
from apr.eval.run.scoring import run_references, score_samples
from apr.eval.run.suite import evaluate_suite, is_suite
from apr.sandbox import Sandbox

from .runs import SETTINGS, Canned
from .shared import shared_data

AREA: dict[str, Any] = {
    "task_id": "area",
    "prompt": 'def area(width, height):\n    """The area of a rectangle: area(2, 3) == 6."""\n',
    "test": "def check(candidate):\n    assert candidate(2, 3) == 6 and candidate(4, 5) == 20\n",
    "canonical_solution": "    return width * height\n",
}
REV: dict[str, Any] = {
    "task_id": "rev",
    "prompt": "Write a function rev(text) that gives the text backwards.",
    "test": ["assert rev('ab') == 'ba'", "assert rev('') == ''"],
    "canonical_solution": "def rev(text):\n    return text[::-1]\n",
}
SUM: dict[str, Any] = {
    "task_id": "sum",
    "prompt": "Read whole numbers, one a line, and print their sum.",
    "cases": [{"input": "1\n2\n", "output": "3\n"}, {"input": "", "output": "0"}],
    "canonical_solution": "import sys\nprint(sum(map(int, sys.stdin)))\n",
}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "own.jsonl", AREA, REV, SUM)


def verdicts(benchmark: OwnBenchmark, programs: dict[str, str]) -> dict[str, str]:
    """Of one program for each task id (what follows a space tells them apart)."""
    with Sandbox() as sandbox:
        jobs = [
            benchmark.job(benchmark.tasks[name.split()[0]], program, name)
            for name, program in programs.items()
        ]
        return {outcome.job_id: outcome.verdict for outcome in sandbox.run_many(jobs)}


def test_the_three_styles(file: Path) -> None:
    benchmark = load_benchmark(str(file))
    assert isinstance(benchmark, OwnBenchmark)
    assert (benchmark.name, benchmark.version) == ("own.jsonl", "own.jsonl-2")
    judged = {name: benchmark.job(t, "", name).judge for name, t in benchmark.tasks.items()}
    assert judged == {"area": "proxy", "rev": "proxy", "sum": "stdin"}
    names = {name: task.entry_point for name, task in benchmark.tasks.items()}
    assert names == {"area": "area", "rev": "rev", "sum": ""}
    right = {
        name: benchmark.program(task, {"completion": task.canonical_solution})
        for name, task in benchmark.tasks.items()
    }
    wrong = {
        "area wrong": AREA["prompt"] + "    return width + height\n",
        "rev wrong": "def rev(text):\n    return text\n",
        "sum wrong": "print(3)\n",
    }
    found = verdicts(benchmark, right | wrong)
    assert {n for n, v in found.items() if v == "passed"} == set(right)
    assert run_references(str(file), progress=False).broken == {}


CHEATS = {
    "equals everything": "class Any:\n    def __eq__(self, o): return True\n"
    "    def __ne__(self, o): return False\n    def __hash__(self): return 0\n"
    "def {}(*args): return Any()\n",
    "exits": "import os\ndef {}(*args): os._exit(0)\n",
    "exits at once": "import sys\ndef {}(*args): pass\nsys.exit(0)\n",
    "prints": "print('passed')\ndef {}(*args): return 'passed'\n",
    "own check": "def {}(*args): return None\ndef check(candidate): pass\n",
    "no assert": "import builtins\nbuiltins.AssertionError = SystemExit\ndef {}(*args): return 0\n",
    "nothing": "",
}


def test_hostile_programs_do_not_pass(file: Path) -> None:
    """In each style; also judged beside the program, where a row asks for that."""
    inside = written(file.with_name("inside.jsonl"), {**AREA, "judge": "in-process"})
    for path, names in ((file, ("area", "rev", "sum")), (inside, ("area",))):
        benchmark = load_benchmark(str(path))
        assert isinstance(benchmark, OwnBenchmark)
        programs = {
            f"{name} {cheat}": text.format(name) for name in names for cheat, text in CHEATS.items()
        }
        assert [n for n, v in verdicts(benchmark, programs).items() if v == "passed"] == []


def test_prompts_and_completions(file: Path) -> None:
    benchmark = load_benchmark(str(file))
    area, rev, total = benchmark.tasks.values()
    base, chat = PromptStyle("base"), PromptStyle("chat")
    human = HumanEval()
    for style in (base, chat, replace(chat, prefill=False)):
        theirs, ours = human.prompt(area, style), benchmark.prompt(area, style)
        assert ours == theirs
        text = "```python\ndef area(w, h):\n    return w * h\n```"
        assert benchmark.completion(area, text, style) == human.completion(area, text, style)
    asked = benchmark.prompt(rev, base)
    assert (asked.text, asked.stop) == (REV["prompt"], WORDS_STOP)
    code = "def rev(text):\n    return text[::-1]"
    assert benchmark.completion(rev, f"\n\n{code}\n```\nSo", base) == code
    assert benchmark.program(rev, {"completion": code}) == code
    answer = f"```python\n{code}\n\nprint(rev('a'))\n```"
    assert benchmark.completion(rev, answer, replace(chat, prefill=False)).strip() == code
    # A script keeps its prints, and no answer is begun that speaks of a function.
    assert benchmark.prompt(total, chat).prefill == ""
    script = "import sys\nprint(sum(map(int, sys.stdin)))"
    assert benchmark.completion(total, f"So:\n```python\n{script}\n```", chat).strip() == script
    assert benchmark.completion(total, script, chat) == script


def test_optional_fields(tmp_path: Path) -> None:
    row = {**AREA, "stop": ["\n\n"], "group": "easy", "time_limit": 9, "author": "me"}
    benchmark = load_benchmark(str(written(tmp_path / "a.jsonl", row, {**REV, "group": ["b"]})))
    area = benchmark.tasks["area"]
    assert benchmark.prompt(area, PromptStyle("base")).stop == ("\n\n",)
    assert benchmark.prompt(benchmark.tasks["rev"], PromptStyle("base")).stop == WORDS_STOP
    assert benchmark.job(area, "", "j").time_limit == 9
    assert benchmark.job(area, "", "j", reference_seconds=2).time_limit == 20
    assert benchmark.groups == {"area": ("easy",), "rev": ("b",)}
    assert benchmark.prompt(area, PromptStyle("base")).stop != BASE_STOP


@pytest.mark.parametrize(
    ("test", "judge"),
    [
        ("def check(candidate):\n    assert isinstance(candidate(1, 2), int)\n", "proxy"),
        ("try:\n    area('a', [])\nexcept TypeError:\n    pass\n", "proxy"),
        ("import math\nassert math.isclose(area(2, 3), 6.0)\n", "proxy"),
        (
            "def same(a: int, b: int) -> bool:\n    return a == b\nassert same(area(2, 3), 6)",
            "proxy",
        ),
        ("def check(candidate):\n    assert type(candidate(2, 3)) == int\n", "proxy"),
        ("assert area(int, 3)\n", "in-process"),
        ("assert area(lambda: 1, 3)\n", "in-process"),
        ("def check(candidate):\n    assert candidate(Box(2), 3) == 6\n", "in-process"),
        ("class Box:\n    pass\nassert area(Box, 3)\n", "in-process"),
    ],
)
def test_which_tests_run_beside_the_program(tmp_path: Path, test: str, judge: str) -> None:
    path = written(tmp_path / "a.jsonl", {**AREA, "test": test})
    benchmark = load_benchmark(str(path))
    assert benchmark.job(benchmark.tasks["area"], "", "j").judge == judge


def test_a_test_that_hands_over_more_than_data_says_what_to_do(tmp_path: Path) -> None:
    test = "import datetime\nassert area(datetime.date(2024, 1, 1), 3)\n"
    row = {**AREA, "test": test, "canonical_solution": "    return True\n"}
    with pytest.raises(AprError, match='type date: use judge="in-process"'):
        run_references(str(written(tmp_path / "a.jsonl", row)), progress=False)
    again = written(tmp_path / "b.jsonl", {**row, "judge": "in-process"})
    assert run_references(str(again), progress=False).broken == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": 3}, "line 2 has no text in field 'task_id'"),
        ({"task_id": "rev"}, "line 2: task_id 'rev' occurs twice"),
        ({"prompt": " "}, "line 2 has no text in field 'prompt'"),
        ({"prompt": "\ud800"}, "line 2 field 'prompt' is not text"),
        ({"canonical_solution": None}, "line 2 has no text in field 'canonical_solution'"),
        ({"test": None}, "line 2 has no text in field 'test'"),
        ({"test": []}, "line 2 has no text in field 'test'"),
        ({"test": [1]}, "line 2 has no text in field 'test'"),
        ({"test": "assert ("}, "line 2: field 'test' is not Python"),
        ({"test": "assert True"}, "line 2: its test never calls area"),
        ({"test": "def check(): assert area(1, 2)"}, "line 2: its check takes 0 arguments"),
        ({"test": "def check(candidate): pass"}, "line 2: its test never calls area"),
        ({"cases": []}, "line 2 has both of 'test' and 'cases'"),
        ({"entry_point": "a b"}, "line 2: entry_point 'a b' is not a function's name"),
        ({"entry_point": "class"}, "line 2: entry_point 'class' is not a function's name"),
        ({"entry_point": 1}, "line 2: entry_point 1 is not a function's name"),
        ({"entrypoint": "area"}, "line 2: field 'entrypoint' is unknown .entry_point"),
        ({"tests": "assert 1"}, "line 2: field 'tests' is unknown .test"),
        ({"time_limit": 0}, "line 2: time_limit is 0"),
        ({"time_limit": "3"}, "line 2: time_limit is '3'"),
        ({"time_limit": True}, "line 2: time_limit is True"),
        ({"time_limit": float("nan")}, "line 2: time_limit is nan"),
        ({"judge": "unittest"}, "line 2: judge is 'unittest'"),
        ({"judge": ["proxy"]}, "line 2: judge is"),
        ({"stop": [""]}, "line 2: field 'stop' is neither a text nor a list of texts"),
        ({"group": 1}, "line 2: field 'group' is neither a text nor a list of texts"),
        (
            {"prompt": "Do it.", "canonical_solution": "x = 1", "test": "assert a(b(1))"},
            "line 2 has no field 'entry_point'",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.jsonl", REV, {**AREA, **change})
    with pytest.raises(UsageError, match=message) as told:
        load_benchmark(str(path))
    assert str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": []}, "field 'cases' is no list of cases"),
        ({"cases": {"input": "", "output": ""}}, "field 'cases' is no list of cases"),
        ({"cases": [["", ""]]}, "case 1 is not two texts"),
        ({"cases": [*SUM["cases"], {"input": "", "output": 3}]}, "case 3 is not two texts"),
        ({"cases": [{"input": "\ud800", "output": ""}]}, "case 1 is not two texts"),
        ({"entry_point": "f"}, "field 'entry_point' has no meaning beside 'cases'"),
        ({"judge": "proxy"}, "field 'judge' has no meaning beside 'cases'"),
    ],
)
def test_bad_cases(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.jsonl", {**SUM, **change})
    with pytest.raises(UsageError, match=f"line 1: {message}"):
        load_benchmark(str(path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "has no tasks"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", "[]", "line 1 is not a JSON object"),
        ("a.jsonl", "{}", "line 1 has no text in field 'task_id'"),
        ("a.jsonl", '{"task_id": "a", "prompt": "b"}', "line 1 has neither of 'test' and 'cases'"),
        ("a.jsonl.gz", "{}", "not a whole gzip file"),
        ("a.json", "{}", "is not an array"),
        ("a.json", "[{}]", "row 1 has no text in field 'task_id'"),
        ("a.txt", "", "is no file of tasks"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        load_benchmark(str(tmp_path / name))


def test_what_does_not_go_with_a_file(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_benchmark("nowhere.jsonl")
    with pytest.raises(UsageError, match=r"own\.jsonl is a file of tasks itself"):
        load_benchmark(str(file), data=file)
    with pytest.raises(UsageError, match="has no splits"):
        load_benchmark(str(file), split="instruct")
    with pytest.raises(UsageError, match=r"humanevl is unknown \(humaneval\? one of .* file of"):
        load_benchmark("humanevl")
    with pytest.raises(UsageError, match="has no reference solutions"):
        bare = {key: value for key, value in AREA.items() if key != "canonical_solution"}
        run_references(str(written(tmp_path / "bare.jsonl", bare)), progress=False)


RETURNED = {
    "date": ("return datetime.date(2024, 2, 29)", "f() == datetime.date(2024, 2, 29)"),
    "named tuple": ("return collections.namedtuple('P', 'x')(1)", "f().x == 1"),
    "data class": ("return dataclasses.make_dataclass('P', ['x'])(1)", "f().x == 1"),
    "printed": ("print('hi')", "(f(), out.getvalue())[1] == 'hi\\n'"),
    "plain": ("return 3", "f() == 3"),
}


def test_the_judge_follows_what_the_reference_returns(tmp_path: Path) -> None:
    """Where plain data cannot carry an answer, by trial; a wrong program fails there, too."""
    modules = "import collections, contextlib, dataclasses, datetime, io, sys"
    rows = [
        {
            "task_id": name,
            "prompt": f"{modules}\ndef f():\n",
            "entry_point": "f",
            "test": f"{modules}\ndef check(f):\n    out = io.StringIO()\n"
            f"    with contextlib.redirect_stdout(out):\n        assert {test}\n",
            "canonical_solution": f"    {body}\n",
        }
        for name, (body, test) in RETURNED.items()
    ]
    path = str(written(tmp_path / "a.jsonl", *rows))
    found = run_references(path, progress=False)
    # Objects whose fields are plain data cross by themselves.
    assert found.broken == {} and found.beside == ("date", "named tuple", "printed")
    samples = tmp_path / "samples.jsonl"
    for body, passed in ((None, 5), ("    return None\n", 0)):
        lines = [
            {"task_id": row["task_id"], "completion": body or row["canonical_solution"]}
            for row in rows
        ]
        samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = score_samples(samples, path, progress=False)
        assert sum(v.verdict == "passed" for v in result.verdicts) == passed
    assert any(note.startswith("judged beside the program") for note in result.notes)
    # What a row says stays.
    stated = str(written(tmp_path / "b.jsonl", {**rows[0], "judge": "proxy"}))
    assert list(run_references(stated, progress=False).broken) == ["date"]


def test_a_broken_reference_is_named(tmp_path: Path) -> None:
    rows = [AREA, {**REV, "canonical_solution": "def rev(text):\n    return text\n"}]
    path = written(tmp_path / "a.jsonl", *rows)
    assert list(run_references(str(path), progress=False).broken) == ["rev"]
    samples = written(
        tmp_path / "samples.jsonl",
        {"task_id": "area", "completion": AREA["canonical_solution"]},
        {"task_id": "rev", "completion": "def rev(text):\n    return text[::-1]\n"},
    )
    result = score_samples(samples, str(path), progress=False)
    assert result.passes[1][0] == 1.0
    assert any("whose reference fails here" in note for note in result.notes)
    left = score_samples(samples, str(path), progress=False, exclude_broken=True)
    assert [v.task_id for v in left.verdicts] == ["area"]


def test_a_whole_run(file: Path, tmp_path: Path) -> None:
    """Generated, judged, reranked, stored with the data's checksum, scored again, shown again."""
    wrong = {"area": "    return 0\n", "rev": "def rev(t):\n    return t\n", "sum": "print(3)\n"}

    def write(task: Any, sample: int) -> str:
        return task.canonical_solution if sample else wrong[task.task_id]

    sampling = replace(SETTINGS.sampling, temperature=0.8)
    settings = replace(
        SETTINGS, benchmark=str(file), sampling=sampling, n_samples=3, out=tmp_path / "run"
    )
    settings = replace(settings, rerank=("majority", "tests"))
    canned = Canned(write)
    result, out = evaluate(settings, canned.model())
    assert result.passes[1][0] == pytest.approx(2 / 3)
    assert result.settings["data"] == load_benchmark(str(file)).data_sha256[:16]
    reranked = {method: row["pass@1"] for method, row in result.to_json()["reranked"].items()}
    assert reranked == {"majority": 1.0, "tests": pytest.approx(1 / 3)}
    again = score_samples(out / "samples.jsonl", str(file), progress=False)
    assert again.passes[1][0] == result.passes[1][0]
    programs = whole_programs(read_run(out))
    assert programs("area", "    pass\n") == AREA["prompt"] + "    pass\n"
    # Another state of the file is another run, and the old one's programs are not guessed.
    written(file, AREA, REV)
    assert whole_programs(read_run(out))("area", "    pass\n") is None
    with pytest.raises(AprError, match="data"):
        evaluate(settings, canned.model())


def test_gzip_arrays_and_names(tmp_path: Path) -> None:
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(AREA).encode()))
    array = tmp_path / "own.json"
    array.write_text(json.dumps([AREA]))
    assert list(load_benchmark(str(packed)).tasks) == list(load_benchmark(str(array)).tasks)
    assert is_suite("humaneval,own.jsonl") and not is_suite(str(packed))
    both = tmp_path / "a,b.jsonl"
    assert not is_suite(str(written(both, AREA)))


def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for form, tasks in (("jsonl", 3), ("python", 5)):
        found = re.findall(rf"^```{form}\n(.*?)^```$", page, re.M | re.S)
        assert len(found) == 1
        path = tmp_path / f"example.{form.replace('python', 'py')}"
        path.write_text(found[0])
        references = run_references(str(path), progress=False)
        assert (len(references.seconds), references.broken) == (tasks, {})


def test_several_files(tmp_path: Path) -> None:
    paths = [written(tmp_path / name, AREA) for name in ("a.jsonl", "b.jsonl")]
    settings = replace(SETTINGS, benchmark=",".join(map(str, paths)), out=tmp_path / "runs")
    found = evaluate_suite(settings, Canned(lambda task, _: task.canonical_solution).model())
    assert [folder.name for _, folder in found.runs] == ["a.jsonl", "b.jsonl"]
    assert [result.passes[1][0] for result, _ in found.runs] == [1.0, 1.0]


def test_humaneval_as_a_file_of_ones_own() -> None:
    """The official file has the documented shape: its tasks get the same jobs and prompts."""
    path = shared_data("humaneval/HumanEval.jsonl.gz")
    human, own = HumanEval(), OwnBenchmark.of_file(path)
    assert list(own.tasks) == list(human.tasks)
    beside = []
    for name, task in human.tasks.items():
        mine = own.tasks[name]
        assert (mine.entry_point, mine.prompt) == (task.entry_point, task.prompt)
        assert own.prompt(mine, PromptStyle("chat")) == human.prompt(task, PromptStyle("chat"))
        row = {"completion": task.canonical_solution}
        program = own.program(mine, row)
        assert program == human.program(task, row)
        job = own.job(mine, program, name)
        if job.judge == "proxy":
            assert replace(job, cases=None) == human.job(task, program, name)
        else:
            beside.append(name)
    assert beside == []


PYTHON = """
from apr.eval.benchmarks.own import OwnBenchmark
from apr.eval.benchmarks.task import Prompt

class Terse(OwnBenchmark):
    def prompt(self, task, style):
        if style.mode == "chat":
            question = f"Only code: {task.prompt}"
            return Prompt(None, [{"role": "user", "content": question}], prefill="", stop=())
        return super().prompt(task, style)

def benchmark():
    rows = [
        {
            "task_id": f"add/{n}",
            "prompt": f"def add_{n}(x):\\n    \\"\\"\\"x and {n}\\"\\"\\"\\n",
            "test": f"def check(candidate):\\n    assert candidate(1) == {n + 1}\\n",
            "canonical_solution": f"    return x + {n}\\n",
        }
        for n in range(3)
    ]
    return Terse.of_rows("terse", rows)
"""


def test_a_python_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PYTHON)
    benchmark = load_benchmark(str(path))
    assert benchmark.name == "terse" and len(benchmark.tasks) == 3
    asked = benchmark.prompt(benchmark.tasks["add/0"], PromptStyle("chat"))
    assert asked.messages is not None and asked.messages[0]["content"].startswith("Only code: def")
    settings = replace(SETTINGS, benchmark=str(path), out=tmp_path / "run")
    result, out = evaluate(settings, Canned(lambda task, _: task.canonical_solution).model())
    assert result.passes[1][0] == 1.0 and result.benchmark == "terse"
    # The file's text is part of what a score is of.
    path.write_text(PYTHON.replace("Only code", "Code only"))
    assert load_benchmark(str(path)).data_sha256 != benchmark.data_sha256
    # To look at a run is not to run a program that it names.
    path.write_text("raise SystemExit('ran')")
    assert whole_programs(read_run(out))("add/0", "") is None


PLAIN = """
from apr.eval.benchmarks.task import Prompt, Task
from apr.sandbox import Job

class Plain:
    name, version, data_sha256, notes = "plain", "plain-1", "0" * 64, ("a note",)
    one = Task("one", "def one():\\n", "one", "assert one() == 1", "    return 1\\n")
    tasks = {"one": one}

    def prompt(self, task, style):
        return Prompt(task.prompt, None, "", ("\\n\\n",))

    def completion(self, task, text, style):
        return text

    def program(self, task, row):
        return task.prompt + row["completion"]

    def job(self, task, program, job_id, reference_seconds=0.0):
        return Job(job_id, program, task.test, task.entry_point)

def benchmark():
    return Plain()
"""


def test_a_class_of_its_own_has_the_rest_as_most_benchmarks(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLAIN)
    settings = replace(SETTINGS, benchmark=str(path), out=tmp_path / "run")
    result, out = evaluate(settings, Canned(lambda task, _: task.canonical_solution).model())
    assert (result.passes[1][0], list(result.notes), result.groups) == (1.0, ["a note"], {})
    again = score_samples(out / "samples.jsonl", str(path), progress=False)
    assert [v.verdict for v in again.verdicts] == ["passed"]
    path.write_text(PLAIN.replace("    def prompt(", "    traits = None\n\n    def prompt(", 1))
    with pytest.raises(UsageError, match=r"has traits .state each as an attribute"):
        load_benchmark(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def benchmark(:", r"mine.py line 1: its statements raised SyntaxError"),
        ("\n1 / 0", r"mine.py line 2: its statements raised ZeroDivisionError"),
        ("raise SystemExit(3)", "line 1: its statements raised SystemExit"),
        ("import nowhere_at_all", "line 1: its statements raised ModuleNotFoundError"),
        ("", r"defines no function benchmark\(\)"),
        ("benchmark = 3", r"defines no function benchmark\(\)"),
        ("def benchmark():\n    return 1 / 0", r"line 2: benchmark\(\) raised ZeroDivisionError"),
        ("def benchmark(): return None", "its benchmark has no text 'name'"),
        ("def benchmark(size): return None", r"benchmark\(\) raised TypeError"),
        (PYTHON.replace('"terse"', '"../terse"'), "'../terse' cannot be part of a file's name"),
        (PYTHON.replace('"terse", rows', '"terse", []'), "terse has no tasks"),
        (PYTHON.replace('"test":', '"tests":'), "terse row 1: field 'tests' is unknown .test"),
        (
            "class B:\n    name = version = data_sha256 = 'b'\ndef benchmark(): return B()",
            r"has no method prompt\(\) .subclass apr.eval.benchmarks.own.OwnBenchmark",
        ),
    ],
)
def test_bad_python_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_benchmark(str(path))


def test_methods_that_go_wrong_are_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PYTHON.replace('f"Only code: {task.prompt}"', "task.nothing"))
    benchmark = load_benchmark(str(path))
    with pytest.raises(UsageError, match=r"line 8: prompt\(\) of add/0 raised AttributeError"):
        benchmark.prompt(benchmark.tasks["add/0"], PromptStyle("chat"))
    path.write_text(PYTHON.replace("return super().prompt(task, style)", "return 'text'"))
    benchmark = load_benchmark(str(path))
    with pytest.raises(UsageError, match=r"prompt\(\) gave str, not Prompt"):
        benchmark.prompt(benchmark.tasks["add/0"], PromptStyle("base"))


def test_tasks_add_what_they_import_to_what_programs_see(tmp_path: Path) -> None:
    uses_rich = "    import rich.console, json\n    return width * height\n"
    own = {**REV, "test": ["from yaml import dump\nassert dump(rev('ab'))[:2] == 'ba'"]}
    path = written(tmp_path / "own.jsonl", {**AREA, "canonical_solution": uses_rich}, own, SUM)
    assert load_benchmark(str(path)).libraries == ("numpy", "rich", "yaml")
    area = f"{AREA['prompt']}    return width * height\n"
    solutions = {
        "area": [f"import torch\n{area}", f"import rich\n{area}"],
        "rev": ["import numpy\ndef rev(t): return t[::-1]"],
        "sum": ["import psutil, sys\nprint(sum(map(int, sys.stdin)))"],
    }
    rows = [{"task_id": t, "solution": text} for t, texts in solutions.items() for text in texts]
    samples = written(tmp_path / "samples.jsonl", *rows)
    found = score_samples(samples, str(path), progress=False)
    assert [v.verdict for v in found.verdicts] == ["failed", "passed", "passed", "failed"]
    assert found.to_json()["programs_may_import"]["libraries"].keys() >= {"numpy", "rich", "pyyaml"}
    assert any("torch (1), psutil (1)" in note for note in found.notes), found.notes
    assert "torch" not in found.imports["libraries"]
    everything = score_samples(samples, str(path), progress=False, python=sys.executable)
    assert everything.passes[1][0] == 1 and "torch" in everything.imports["libraries"]
