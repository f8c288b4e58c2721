"""LiveCodeBench: data, prompts, extraction and verdicts, against LiveCodeBench's own code.

Its verdicts and prompts are recorded here and in livecodebench_programs.py; the slow tests ask
the code itself, where APR_LIVECODEBENCH names a clone (commit 28fef95) and, if it needs another
interpreter, APR_LIVECODEBENCH_PYTHON one with numpy and tqdm.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apr.cli.main import app
from apr.common.errors import UsageError
from apr.eval.benchmarks import livecodebench_data, load_benchmark
from apr.eval.benchmarks.livecodebench import LiveCodeBench, answered, last_block
from apr.eval.benchmarks.livecodebench_data import unpack_tests
from apr.eval.benchmarks.task import Dates, PromptStyle
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate
from apr.eval.run.scoring import score_samples
from apr.sandbox import Outcome, Sandbox

from .livecodebench_programs import FUNCTIONAL, STDIN, Program
from .runs import Canned
from .shared import completions, samples

SAMPLES = "livecodebench_o1-mini-2024-09-12_sample40"
CHAT = PromptStyle("chat", prefill=False)
BASE = PromptStyle("base", "keep")


def data_file() -> Path:
    folder = completions(f"{SAMPLES}.jsonl.gz").parents[1] / "livecodebench"
    return folder / "livecodebench-release_v1-sample40.jsonl.gz"


@pytest.fixture(scope="module")
def benchmark() -> LiveCodeBench:
    return LiveCodeBench([data_file()])


def rows() -> list[dict[str, Any]]:
    with gzip.open(data_file(), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def official(task: str, given: Any, folder: Path) -> Any:
    """What the clone says; see livecodebench_official.py."""
    clone = os.environ.get("APR_LIVECODEBENCH")
    if not clone:
        pytest.skip("APR_LIVECODEBENCH names no clone of LiveCodeBench/LiveCodeBench")
    python = os.environ.get("APR_LIVECODEBENCH_PYTHON", sys.executable)
    script = Path(__file__).with_name("livecodebench_official.py")
    (folder / "in").write_text(json.dumps(given))
    command = [python, str(script), task, str(folder / "in"), str(folder / "out")]
    subprocess.run(
        command, cwd=clone, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    return json.loads((folder / "out").read_text())


# Data. ---------------------------------------------------------------------------------------


def test_the_problems_of_the_sample(benchmark: LiveCodeBench) -> None:
    assert len(benchmark.tasks) == 40
    jobs = {name: benchmark.job(task, "", name) for name, task in benchmark.tasks.items()}
    assert sum(job.judge == "functional" for job in jobs.values()) == 18
    assert jobs["2728"].entry_point == "matrixSum"
    assert list(benchmark.groups.values()).count(("hard",)) == 9
    for row in rows():
        packed = zlib.decompress(base64.b64decode(row["private_test_cases"]))
        tests = json.loads(row["public_test_cases"]) + json.loads(pickle.loads(packed))
        cases = jobs[row["question_id"]].cases
        assert cases is not None
        assert list(cases()) == [(test["input"], test["output"]) for test in tests]


def test_private_tests_may_be_plain_json() -> None:
    assert unpack_tests('[{"input": "1", "output": "2"}]', "x") == [{"input": "1", "output": "2"}]


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (packed(pickle.dumps(Call())), "asks for posix.mkdir"),
        (packed(b"cos\nsystem\n(S'mkdir unpickled'\ntR."), "asks for os.system"),
        (packed(pickle.dumps(["[]"])), "pickled list, not a string"),
        (packed(pickle.dumps("[")), "is not JSON"),
        (packed(pickle.dumps("{}")), "not a list of tests"),
        (packed(pickle.dumps("[1]")), "not a list of tests"),
        (packed(pickle.dumps("[" * 200_000)), "is not JSON"),
        (packed(b"\x80\x04P1\n."), "holds no pickled string"),
        (packed(b""), "holds no pickled string"),
        (packed(pickle.dumps("[]"))[:-8], "cut off"),
        ("eJw", "neither JSON nor base64"),
        ("not base64!", "neither JSON nor base64"),
        ("", "neither JSON nor base64|cut off"),
    ],
)
def test_what_is_no_pickled_string_is_refused(
    text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=problem) as caught:
        unpack_tests(text, "here: private_test_cases")
    assert caught.value.message.startswith("here: private_test_cases")
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livecodebench_data, "MAX_TESTS_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="larger than 1 MiB when unpacked"):
        unpack_tests(packed(pickle.dumps(" " * (1 << 20))), "x")
    assert unpack_tests(packed(pickle.dumps("[]" + " " * (1 << 19))), "x") == []


ROW = {
    "question_id": "q",
    "question_content": "Say 1.",
    "starter_code": "",
    "difficulty": "easy",
    "contest_date": "2024-01-02T03:00:00",
    "public_test_cases": '[{"input": "", "output": "1", "testtype": "stdin"}]',
    "private_test_cases": "[]",
    "metadata": "{}",
}


def written(folder: Path, *found: dict[str, Any]) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"contest_date": "soon"}, "line 2: contest_date 'soon' is not a date"),
        ({"metadata": "{"}, "line 2: metadata is not JSON"),
        ({"metadata": '{"func_name": 1}'}, "line 2: metadata names no function"),
        ({"difficulty": None}, "line 2 has no text in field 'difficulty'"),
        ({"question_id": "q"}, "line 2: question_id 'q' occurs twice"),
    ],
)
def test_faulty_rows_are_named(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        LiveCodeBench([written(tmp_path, ROW, {**ROW, "question_id": "r", **change})])


@pytest.mark.parametrize(
    ("tests", "problem"),
    [("[]", "has no test"), ('[{"input": ""}]', "lacks the text 'input' or 'output'")],
)
def test_faulty_tests_are_named_when_they_are_needed(
    tests: str, problem: str, tmp_path: Path
) -> None:
    path = written(tmp_path, {**ROW, "public_test_cases": tests})
    given = tmp_path / "samples.jsonl"
    given.write_text('{"task_id": "q", "solution": "print(1)"}\n')
    with pytest.raises(UsageError, match=f"question_id 'q'.*{problem}"):
        score_samples(given, "livecodebench", path, workers=1, progress=False)


def test_several_files_make_a_release(tmp_path: Path) -> None:
    first = written(tmp_path, ROW)
    second = tmp_path / "test2.jsonl"
    second.write_text("\ufeff" + "\n" + json.dumps({**ROW, "question_id": "r"}) + "\n")
    both = LiveCodeBench([first, second])
    assert list(both.tasks) == ["q", "r"]
    cases = both.job(both.tasks["r"], "", "r").cases
    assert cases is not None and cases() == (("", "1"),)
    assert len({LiveCodeBench(f).data_sha256 for f in ([first], [second], [first, second])}) == 3


# Prompts and extraction. ---------------------------------------------------------------------


def test_prompts_are_the_official_ones(benchmark: LiveCodeBench) -> None:
    """Checksums of what LiveCodeBench's code makes of the sample's problems."""
    chat, base = hashlib.sha256(), hashlib.sha256()
    for task in benchmark.tasks.values():
        chat.update(json.dumps(benchmark.prompt(task, CHAT).messages).encode())
        text = benchmark.prompt(task, BASE).text
        assert text is not None
        base.update(text.rpartition("### Question\n")[2].encode())
    assert chat.hexdigest() == "729378e62923d3d8e14922e422cdd03e53000905b4fc451266096de18b43734f"
    assert base.hexdigest() == "399423924a62f054eabd86a274d5b951f87691c65e4486e38c41d051ce82a842"


def test_base_prompt_shows_a_solved_example_of_the_same_kind(benchmark: LiveCodeBench) -> None:
    for name, kind in (("2728", "nums: List[int]"), ("abc313_a", "int(input())")):
        prompt = benchmark.prompt(benchmark.tasks[name], BASE)
        assert prompt.text is not None
        example, _, asked = prompt.text.rpartition("### Question\n")
        assert kind in example
        assert asked.endswith("### Answer\n\n")
        assert prompt.stop == ("###",)
        stripped = benchmark.prompt(benchmark.tasks[name], replace(BASE, newline="strip")).text
        assert stripped == prompt.text.rstrip()


def test_extraction_is_the_official_one(benchmark: LiveCodeBench) -> None:
    """On recorded answers, whose extracted code is recorded as well."""
    task = benchmark.tasks["2728"]
    for row in samples(SAMPLES):
        for text, code in zip(row["output_list"], row["code_list"], strict=True):
            assert benchmark.completion(task, text, CHAT) == code
    assert benchmark.completion(task, "\n x\n``` \n", BASE) == "x\n```"


ANSWERS = (
    "",
    "no code",
    "```python\nprint(1)\n```",
    "```python\nprint(1)\n",
    "a\n```python\nx\n```\nb\n```\ny\n```\nc",
    "```python\nx\n```\n```\n",
    "``` one line ```\nx\n```",
    "  ```py\n  x\n  ```\r\n",
    "x = '```'\ny\n```",
)


def test_a_block_that_is_no_program_is_not_the_answer() -> None:
    program = "n = int(input())\nprint(n + n)"
    for behind in ("8", "YES\nNO", "python main.py < in.txt", "[1, 2]", ""):
        text = f"So:\n```python\n{program}\n```\nThen\n```\n{behind}\n```\n"
        assert answered(text).strip() == (program if behind else "")
    for text in ("", "no block", f"```python\n{program}", "```\n8\n```", "```\nx = (\n```"):
        assert answered(text) == last_block(text)
    assert [answered(answer) for answer in ANSWERS] == [last_block(a) for a in ANSWERS]


def test_last_block() -> None:
    wanted = ["", "", "print(1)", "", "y", "", "x", "  x", "y"]
    assert [last_block(answer) for answer in ANSWERS] == wanted


# Verdicts. -----------------------------------------------------------------------------------


def code_of(outcome: Outcome) -> int:
    """A verdict in the official numbers."""
    if outcome.passed or outcome.verdict == "timeout":
        return 1 if outcome.passed else -3
    if outcome.detail.startswith("failed: wrong answer: "):
        return -2
    return -4 if outcome.detail.startswith("failed: runtime error: ") else -5


def judged(programs: tuple[Program, ...], folder: Path) -> dict[str, int]:
    """Through a data file and the benchmark's own jobs."""
    path = written(
        folder,
        *(
            {
                **ROW,
                "question_id": program.name,
                "public_test_cases": json.dumps(
                    [{"input": given, "output": output} for given, output in program.cases]
                ),
                "metadata": json.dumps({"func_name": program.function or None}),
            }
            for program in programs
        ),
    )
    benchmark = LiveCodeBench([path])
    jobs = [
        replace(
            benchmark.job(benchmark.tasks[program.name], program.text, program.name),
            time_limit=1.0,
        )
        for program in programs
    ]
    with Sandbox(2, allow_weak=True, preload=benchmark.preload) as sandbox:
        return {outcome.job_id: code_of(outcome) for outcome in sandbox.run_many(jobs)}


@pytest.mark.parametrize("programs", [STDIN, FUNCTIONAL], ids=["stdin", "functional"])
def test_verdicts_are_the_official_ones_but_where_it_errs(
    programs: tuple[Program, ...], tmp_path: Path
) -> None:
    wanted = {p.name: p.official if p.ours is None else p.ours for p in programs}
    assert len(wanted) == len(programs)
    assert judged(programs, tmp_path) == wanted


def test_every_difference_is_explained() -> None:
    for program in (*STDIN, *FUNCTIONAL):
        assert (program.ours is not None) == bool(program.why)
        assert program.ours != program.official


@pytest.fixture(scope="module")
def result() -> Any:
    return score_samples(
        completions(f"{SAMPLES}.jsonl.gz"), "livecodebench", data_file(), progress=False
    )


def test_recorded_samples_get_their_recorded_verdicts(result: Any) -> None:
    """o1-mini's answers: what the tests that are here give, and the kind of the failure."""
    found = {verdict.task_id: verdict for verdict in result.verdicts}
    recorded = {row["question_id"]: row for row in samples(SAMPLES)}
    ours = {name: verdict.verdict == "passed" for name, verdict in found.items()}
    wanted = {n: row["expected_on_included_tests"] == "pass" for n, row in recorded.items()}
    assert ours == wanted
    assert sum(ours.values()) == 27
    assert [name for name, row in recorded.items() if row["graded_list"] == [True]] == [
        name for name in recorded if ours[name] and recorded[name]["failing_test_included"] is None
    ]
    for name, row in recorded.items():
        if row["failing_test_included"]:
            assert row["metadata"]["error_code"] == -2
            assert found[name].detail.startswith("failed: wrong answer: "), name


def test_scores_of_each_difficulty(result: Any) -> None:
    recorded = samples(SAMPLES)
    groups = {row["question_id"]: row["difficulty"] for row in rows()}
    assert list(result.groups) == ["easy", "medium", "hard"]
    for group, scores in result.groups.items():
        members = [row for row in recorded if groups[row["question_id"]] == group]
        passed = sum(row["expected_on_included_tests"] == "pass" for row in members)
        assert scores == {"tasks": len(members), "pass@1": pytest.approx(passed / len(members))}
    assert result.to_json()["groups"] == result.groups


# Dates. --------------------------------------------------------------------------------------


def test_window_keeps_what_the_official_filter_keeps(benchmark: LiveCodeBench) -> None:
    """Both ends included, compared as moments (load_code_generation_dataset)."""
    first, last = datetime(2023, 9, 2), datetime(2023, 12, 23)
    wanted = [
        row["question_id"]
        for row in rows()
        if first <= datetime.fromisoformat(row["contest_date"]) <= last
    ]
    window = LiveCodeBench([data_file()], Dates(first, last))
    assert list(window.tasks) == wanted
    assert 0 < len(wanted) < 40
    note, unknown = window.notes
    assert note == f"{len(wanted)} of 40 problems, contests of 2023-09-02 to 2023-12-23"
    assert unknown.startswith("contamination: unknown; --cutoff")
    assert window.data_sha256 == benchmark.data_sha256


def test_a_window_that_reaches_before_the_cutoff_says_so() -> None:
    cutoff = datetime(2024, 1, 27)
    (_, note) = LiveCodeBench([data_file()], Dates(cutoff=cutoff)).notes
    assert note.startswith("contamination: 36 of 40 problems are not newer than the cut-off 2024-")
    clean = LiveCodeBench([data_file()], Dates(first=datetime(2024, 1, 28), cutoff=cutoff))
    assert len(clean.tasks) == 4
    assert len(clean.notes) == 1
    dated = LiveCodeBench([data_file()], Dates(cutoff=cutoff)).groups
    newer = {name for name, groups in dated.items() if groups[1] == "after 2024-01-27"}
    assert newer == {*clean.tasks}


def test_command_line(tmp_path: Path) -> None:
    path = completions(f"{SAMPLES}.jsonl.gz")
    command = ["score", str(path), "--benchmark", "livecodebench", "--data", str(data_file())]
    dates = ["--start-date", "2024-01-01", "--end-date", "2024-02-10", "--cutoff", "2024-01-31"]
    done = CliRunner().invoke(app, [*command, *dates, "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert (value["tasks"], value["pass@1"], value["passed_samples"]) == (5, 0.8, 4)
    assert len(value["notes"]) == 3
    assert "records 4 of 5 samples as passed; all verdicts are the same" in value["notes"][-1]
    done = CliRunner().invoke(app, [*command, *dates])
    assert "contamination: 2 of 5 problems" in " ".join(done.stdout.replace("│", "").split())
    assert "easy" in done.stdout
    sides = [value["groups"][f"{side} 2024-01-31"] for side in ("up to", "after")]
    assert [side["tasks"] for side in sides] == [2, 3]
    assert sum(side["tasks"] * side["pass@1"] for side in sides) == pytest.approx(4)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--start-date", "2024"], "--start-date 2024 is not a day"),
        (
            ["--start-date", "2024-02-02", "--end-date", "2024-02-01"],
            "--start-date 2024-02-02 is after --end-date",
        ),
        (["--start-date", "2030-01-01"], "no problem of .* is from 2030-01-01 to the end"),
        (["--benchmark", "humaneval", "--cutoff", "2024-01-01"], "humaneval has no dates"),
    ],
)
def test_dates_that_make_no_sense(flags: list[str], problem: str) -> None:
    command = ["score", str(completions(f"{SAMPLES}.jsonl.gz")), "--data", str(data_file())]
    done = CliRunner().invoke(app, [*command, "--benchmark", "livecodebench", *flags])
    assert done.exit_code != 0
    assert isinstance(done.exception, UsageError | SystemExit)
    message = getattr(done.exception, "message", done.output)
    assert re.search(problem, message)


def test_the_data_is_pulled_by_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    for name in ("livecodebench", "livecodebench@release_v1"):
        with pytest.raises(UsageError, match=f"the data of {name} is not here") as caught:
            load_benchmark(name)
        assert caught.value.hint is not None
        assert f"apr data pull {name} fetches it" in caught.value.hint
    with pytest.raises(UsageError, match="livecodebench@v9 is unknown"):
        load_benchmark("livecodebench@v9")
    (tmp_path / "data").mkdir()
    written(tmp_path / "data", ROW).rename(tmp_path / "data" / "livecodebench-test.jsonl")
    assert list(load_benchmark("livecodebench@release_v1").tasks) == ["q"]


# Files of samples. ---------------------------------------------------------------------------


def test_files_of_its_own_tools(tmp_path: Path) -> None:
    """An array with code_list, with output_list, and rows of programs: the same scores."""
    data = written(tmp_path, ROW, {**ROW, "question_id": "r"})
    right, wrong = "print(1)", "print(2)"
    shapes: dict[str, Any] = {
        "codes.json": [
            {"question_id": "q", "code_list": [right, wrong]},
            {"question_id": "r", "code_list": [wrong, right], "output_list": ["", ""]},
        ],
        "outputs.json": [
            {"question_id": "q", "output_list": [f"```\n{right}\n```", f"```\n{wrong}\n```"]},
            {"question_id": "r", "output_list": ["none", f"So:\n```python\n{right}\n```\n"]},
        ],
    }
    for name, value in shapes.items():
        (tmp_path / name).write_text(json.dumps(value))
    lines = [("q", right), ("r", wrong), ("q", wrong), ("r", right)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"task_id": t, "solution": s}) + "\n" for t, s in lines)
    )
    for name in (*shapes, "rows.jsonl"):
        found = score_samples(
            tmp_path / name, "livecodebench", data, ks=[1, 2], workers=1, progress=False
        )
        verdicts = {(v.task_id, v.sample): v.verdict == "passed" for v in found.verdicts}
        wanted = {("q", 0): True, ("q", 1): False, ("r", 0): False, ("r", 1): True}
        assert verdicts == wanted, name
        assert (found.passes[1][0], found.passes[2][0]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([{"question_id": "q"}], "line 1: question_id 'q' has no list of texts in field 'output_l"),
        ([{"question_id": "q", "code_list": "x"}], "no list of texts in field 'code_list'"),
        ([{"question_id": "q", "code_list": []}], "no list of texts in field 'code_list'"),
        ([{"question_id": "z", "code_list": ["x"]}], "task_id 'z' is not in livecodebench"),
        ({"question_id": "q"}, "is not an array of JSON objects"),
        ([["x"]], "is not an array of JSON objects"),
    ],
)
def test_faulty_files_are_named(value: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match=problem):
        score_samples(path, "livecodebench", written(tmp_path, ROW), progress=False)


def test_evaluation_of_a_model(tmp_path: Path) -> None:
    """From chat answers to the file that LiveCodeBench's custom_evaluator takes, and back."""
    data = written(tmp_path, ROW, {**ROW, "question_id": "r", "difficulty": "hard"})
    answers = {"q": "Print it:\n```python\nprint(1)\n```", "r": "I do not know."}
    settings = EvalSettings(
        model="canned", benchmark="livecodebench", data=data, out=tmp_path / "run", progress=False
    )
    model = Canned(lambda task, _: answers[task.task_id]).model(chat_template="{{ messages }}")
    found, folder = evaluate(settings, model)
    assert found.groups == {"easy": {"tasks": 1, "pass@1": 1.0}, "hard": {"tasks": 1, "pass@1": 0}}
    assert found.settings["prompt"] == "chat, without prefill"
    assert found.settings["max_tokens"] == 2000
    assert json.loads((folder / "livecodebench.json").read_text()) == [
        {"question_id": "q", "code_list": ["print(1)"], "output_list": [answers["q"]]},
        {"question_id": "r", "code_list": [""], "output_list": [answers["r"]]},
    ]
    for name in ("livecodebench.json", "samples.jsonl"):
        again = score_samples(folder / name, "livecodebench", data, progress=False)
        assert again.passes == found.passes
    assert "livecodebench.json" in json.loads((folder / "manifest.json").read_text())["files"]


# Against the official code itself. -----------------------------------------------------------


@pytest.mark.slow
def test_the_recorded_verdicts_are_the_harness_s(tmp_path: Path) -> None:
    for programs in (STDIN, FUNCTIONAL):
        given = [
            [p.name, *map(list, zip(*p.cases, strict=True)), p.function or None, p.text]
            for p in programs
        ]
        assert official("verdicts", given, tmp_path) == {p.name: p.official for p in programs}


@pytest.mark.slow
def test_questions_are_the_official_ones(benchmark: LiveCodeBench, tmp_path: Path) -> None:
    theirs = official("questions", {"rows": rows(), "answers": ANSWERS}, tmp_path)
    tasks = list(benchmark.tasks.values())
    assert [benchmark.prompt(task, CHAT).messages for task in tasks] == theirs["chat"]
    bases = [
        (benchmark.prompt(task, BASE).text or "").rpartition("### Question\n") for task in tasks
    ]
    assert [base[2] for base in bases] == theirs["base"]
    assert [last_block(answer) for answer in ANSWERS] == theirs["codes"]
    tests = []
    for task in tasks:
        cases = benchmark.job(task, "", "").cases
        assert cases is not None
        tests.append([list(case) for case in cases()])
    assert tests == theirs["tests"]


FLOATS = (
    "import builtins\ndef print(*values):\n"
    "    builtins.print(*[x + 0.0 if type(x) is int else x for x in values])\n"
)


def _appended(code: str, line: str) -> str:
    """The line at the end, of the main guard if there is one (which must come last there)."""
    return code.rstrip() + ("\n    " if "\nif __name__" in code else "\n") + line


MUTATIONS: dict[str, Callable[[str], str]] = {
    "as it is": lambda code: code,
    "white space": lambda code: code.replace("print(", "print(' ', "),
    "blank lines at the end": lambda code: _appended(code, "print('\\n')"),
    "another line": lambda code: _appended(code, "print('end')"),
    "floats": lambda code: FLOATS + code,
    "off by one": lambda code: code.replace("1", "2"),
    "comparison": lambda code: code.replace("<", ">"),
    "exit at the end": lambda code: _appended(code, "sys.exit(0)"),
    "exit in the middle": lambda code: code.replace("    return ", "    exit(); return ", 1),
    "buffer": lambda code: code.replace("sys.stdin.read()", "sys.stdin.buffer.read().decode()"),
    "tuples": lambda code: code.replace("return res", "return tuple(res)"),
    "floats for integers": lambda code: code.replace("//", "/"),
    "prints": lambda code: code.replace("        return ", "        print('x')\n        return "),
    "cut in half": lambda code: code[: len(code) // 2],
    "raises at the end": lambda code: _appended(code, "1 / 0"),
    "numpy": lambda code: re.sub("return (.+)", r"return __import__('numpy').array(\1)", code),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_recorded_samples_and_mutants_get_the_official_verdicts(
    benchmark: LiveCodeBench, mutation: str, tmp_path: Path
) -> None:
    programs: list[list[Any]] = []
    jobs = []
    for row in samples(SAMPLES):
        code = MUTATIONS[mutation](row["code_list"][0])
        job = benchmark.job(benchmark.tasks[row["question_id"]], code, row["question_id"])
        assert job.cases is not None
        inputs, outputs = map(list, zip(*job.cases(), strict=True))
        programs.append([row["question_id"], inputs, outputs, job.entry_point or None, code])
        jobs.append(job)
    theirs = official("verdicts", programs, tmp_path)
    with Sandbox(2, preload=benchmark.preload) as sandbox:
        ours = {outcome.job_id: code_of(outcome) for outcome in sandbox.run_many(jobs)}
    # An exit in a function that is called ends the harness (-5), here it is a runtime error.
    assert ours == {name: -4 if code == -5 else code for name, code in theirs.items()}
