"""BigCodeBench: data, prompts, and verdicts equal to the recorded and to the official ones."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apr.cli.main import app
from apr.common.errors import AprError, UsageError
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.bigcodebench import BigCodeBench
from apr.eval.benchmarks.task import PromptStyle, Task
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import evaluate
from apr.eval.run.judging import PATIENCE
from apr.eval.run.scoring import run_references, score_samples
from apr.sandbox import Job, Sandbox
from apr.sandbox.interpreter import find_interpreter

from .mutants import changed_programs
from .runs import Canned
from .shared import completions, published, samples, shared_data

NAME = "bigcodebench-complete_qwen2.5-coder-1.5b-base_sample150"
OFFICIAL_PYTHON = "APR_BIGCODEBENCH_PYTHON"
REPEATS = 20  # of programs on which the two disagree


def data() -> Path:
    return shared_data("bigcodebench/BigCodeBench-v0.1.0-sample150.jsonl.gz")


def rows() -> list[dict[str, Any]]:
    with gzip.open(data(), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def bench() -> BigCodeBench:
    return BigCodeBench(data())


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data and completions of the 90 tasks that need the standard library only."""
    folder = tmp_path_factory.mktemp("stdlib")
    kept = [row for row in rows() if row["deps"] == "stdlib"]
    names = {row["task_id"] for row in kept}
    parts = {"data": kept, "samples": [row for row in samples(NAME) if row["task_id"] in names]}
    for name, part in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text)
    return folder / "data.jsonl", folder / "samples.jsonl"


def test_tasks(bench: BigCodeBench) -> None:
    assert list(bench.tasks) == [row["task_id"] for row in rows()]
    hard = BigCodeBench(data(), "bigcodebench-hard")
    assert list(hard.tasks) == [row["task_id"] for row in rows() if row["subset_hard"]]
    assert len(hard.tasks) == 19
    versions = {BigCodeBench(data(), split=split).version for split in ("complete", "instruct")}
    assert versions == {"bigcodebench-complete-2", "bigcodebench-instruct-2"}


ROW = {
    "task_id": "BigCodeBench/0",
    "complete_prompt": "def task_func():\n",
    "instruct_prompt": "Do it.",
    "code_prompt": "def task_func():",
    "canonical_solution": "",
    "test": "",
    "entry_point": "task_func",
}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no tasks"),
        ([{**ROW, "test": None}], "line 1 has no text in field 'test'"),
        ([ROW, ROW], "line 2: task_id 'BigCodeBench/0' occurs twice"),
        ([{**ROW, "entry_point": "1"}], "line 1: entry_point '1'"),
        (
            [{**ROW, "task_id": f"BigCodeBench/{n}"} for n in range(149)],
            "149 tasks and no field 'subset_hard'",
        ),
    ],
)
def test_bad_data(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UsageError, match=message):
        load_benchmark("bigcodebench-hard", path)


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--split whole"):
        load_benchmark("bigcodebench", data(), split="whole")
    with pytest.raises(UsageError, match="--split: humaneval"):
        load_benchmark("humaneval", split="instruct")
    with pytest.raises(UsageError, match="apr data pull bigcodebench"):
        load_benchmark("bigcodebench")
    with pytest.raises(UsageError, match=r"--python .*: No such file"):
        find_interpreter("/nowhere/python")
    with pytest.raises(UsageError, match="does not answer"):
        find_interpreter("/bin/true")
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho '[[3, 9, 2], {}, null]'\n")
    old.chmod(0o755)
    with pytest.raises(UsageError, match=r"Python 3\.9\.2"):
        find_interpreter(str(old))


def test_prompts(bench: BigCodeBench) -> None:
    row = rows()[0]
    task = bench.tasks[row["task_id"]]
    raw = bench.prompt(task, PromptStyle("base", bench.newline))
    assert raw.text == row["complete_prompt"] and "\nassert " in raw.stop
    asked = bench.prompt(task, PromptStyle("chat"))
    assert asked.messages is not None and asked.prefill.endswith("```python\n")
    assert f"```\n{row['complete_prompt'].strip()}\n```\n" in asked.messages[0]["content"]
    instruct = BigCodeBench(data(), split="instruct")
    said = instruct.prompt(task, PromptStyle("chat", prefill=False))
    assert said.messages is not None
    assert said.messages[0]["content"].endswith(f"block:\n{row['instruct_prompt'].strip()}\n")
    with pytest.raises(UsageError, match="--split instruct"):
        instruct.prompt(task, PromptStyle("base"))


def judge(
    jobs: list[Job], python: str | None = None, preload: tuple[str, ...] = ()
) -> dict[str, bool]:
    with Sandbox(python=python, preload=("unittest.mock", "hashlib", *preload)) as sandbox:
        outcomes = list(sandbox.run_many(jobs))
    assert [o for o in outcomes if o.verdict == "sandbox-error"] == []
    return {outcome.job_id: outcome.passed for outcome in outcomes}


@pytest.mark.parametrize("mode", ["base", "chat"])
def test_what_models_write(bench: BigCodeBench, mode: str) -> None:
    """Right answers in the forms models give pass, whatever else they write."""
    task = bench.tasks["BigCodeBench/1"]
    body = task.canonical_solution.rstrip() + "\n"
    whole = task.prompt + body
    example = "\n# Example\nprint(task_func(3))\ntask_func('a')\n"
    texts = {
        "base": [
            body,
            body + example,
            body + "\nif __name__ == '__main__':\n    1 / 0\n",
            body + "x = task_func(-1)\n",
            body + "\n\n@decorator\ndef task_func(x):\n    1 / 0\n",
        ],
        "chat": [
            f"{whole}\n```\nThat is all.",
            f"Here you are:\n```python\n{whole}{example}```\n",
            f"```python\n{body}```\n",
            whole + example,
        ],
    }[mode]
    style = PromptStyle("base", "keep") if mode == "base" else PromptStyle("chat", prefill=False)
    found = judge(
        [
            bench.job(task, bench.program(task, {"completion": completion}), str(number))
            for number, text in enumerate(texts)
            for completion in [bench.completion(task, text, style)]
        ]
    )
    assert found == {str(number): True for number in range(len(texts))}


def test_calibration(bench: BigCodeBench) -> None:
    """Official: code_prompt, an empty body, then the solution; which may so lack its imports."""
    row = rows()[0]
    task = bench.tasks[row["task_id"]]
    solution = "def task_func(length=100):\n" + row["canonical_solution"]
    program = bench.program(task, {"solution": solution})
    assert program == row["code_prompt"] + "\n    pass\n" + solution
    completed = bench.program(task, {"completion": row["canonical_solution"]})
    assert completed.endswith(row["complete_prompt"] + row["canonical_solution"])
    assert judge([bench.job(task, program, "a"), bench.job(task, completed, "b")]) == {
        "a": True,
        "b": True,
    }


def test_time_limits(bench: BigCodeBench) -> None:
    task = next(iter(bench.tasks.values()))
    limits = [bench.job(task, "", "j", seconds).time_limit for seconds in (0, 1, 12)]
    assert limits == [30, 30, 240]


def test_recorded_verdicts(stdlib: tuple[Path, Path]) -> None:
    """Every reference passes, and every sample has the status its publisher recorded."""
    tasks, path = stdlib
    result = score_samples(path, "bigcodebench", data=tasks, progress=False)
    found = {v.task_id: v.verdict == "passed" for v in result.verdicts}
    recorded = {row["task_id"]: row["status"] == "pass" for row in samples(NAME)}
    assert found == {task: recorded[task] for task in found}
    facts = result.to_json()
    assert facts["reference_solutions"]["passed"] == facts["tasks"] == 90
    assert facts["passed_samples"] == published()[NAME]["rescored_stdlib_90"]["pass"] == 39
    same = "the file records 39 of 90 samples as passed; all verdicts are the same here"
    assert facts["notes"] == [same] and facts["judges"] == {"unittest": 90}


@pytest.fixture
def lacking(tmp_path: Path) -> tuple[Path, Path]:
    """Two tasks, one of which needs what no interpreter has; right samples of both."""
    kept = [row for row in rows() if row["deps"] == "stdlib"][:2]
    solutions = [
        {"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in kept
    ]
    kept[1]["code_prompt"] = "import nolib.part\n" + kept[1]["code_prompt"]
    for name, part in {"data": kept, "samples": solutions}.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path / "data.jsonl", tmp_path / "samples.jsonl"


def test_broken_tasks_are_named_and_left_out_on_request(lacking: tuple[Path, Path]) -> None:
    tasks, path = lacking
    names = [row["task_id"] for row in map(json.loads, path.read_text().splitlines())]
    counted = score_samples(path, "bigcodebench", data=tasks, progress=False).to_json()
    assert counted["pass@1"] == 0.5 and counted["tasks"] == 2
    found = counted["reference_solutions"]
    assert list(found["broken"]) == [names[1]]
    assert found["missing_libraries"] == {"nolib": [names[1]]}
    assert counted["notes"][1] == f"cannot be imported here: nolib (needed by {names[1]})"
    left = score_samples(path, "bigcodebench", data=tasks, exclude_broken=True, progress=False)
    assert left.to_json()["pass@1"] == 1.0 and list(left.per_task) == names[:1]


def test_nothing_left_to_score(lacking: tuple[Path, Path]) -> None:
    tasks, path = lacking
    for file in lacking:
        file.write_text(file.read_text().splitlines()[1])
    with pytest.raises(AprError, match="no reference solution passes"):
        score_samples(path, "bigcodebench", data=tasks, exclude_broken=True, progress=False)


def test_references_are_run_once(
    lacking: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    asked: list[float] = []
    whole = BigCodeBench.job

    def job(self: BigCodeBench, task: Any, program: str, name: str, seconds: float = 0) -> Job:
        asked.append(seconds)
        return whole(self, task, program, name, seconds)

    monkeypatch.setattr(BigCodeBench, "job", job)
    tasks, path = lacking
    for _ in range(2):
        score_samples(path, "bigcodebench", data=tasks, progress=False)
    assert (len(asked), asked.count(PATIENCE)) == (6, 2)  # 2 references, 2 times 2 samples
    assert run_references("bigcodebench", tasks, progress=False).broken.keys() == {
        json.loads(tasks.read_text().splitlines()[1])["task_id"]
    }
    assert len(asked) == 8  # --check-gt asks anew
    (file,) = (tmp_path / "cache" / "references").iterdir()
    file.write_text("damaged")
    score_samples(path, "bigcodebench", data=tasks, progress=False)
    assert len(asked) == 12


def test_check_gt(lacking: tuple[Path, Path]) -> None:
    call = ["score", "--check-gt", "--benchmark", "bigcodebench", "--data", str(lacking[0])]
    shown = CliRunner().invoke(app, [*call, "--python", sys.executable])
    assert shown.exit_code == 1
    assert shown.stdout.startswith("1 of 2 reference solutions pass with Python 3.")
    assert json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)["passed"] == 1
    for arguments in (["score"], ["score", "--check-gt"]):
        assert CliRunner().invoke(app, arguments).exit_code != 0


@pytest.mark.parametrize("split", ["complete", "instruct"])
def test_a_run(stdlib: tuple[Path, Path], tmp_path: Path, split: str) -> None:
    """From answers to results; what it writes scores the same as samples made elsewhere."""

    def write(task: Task, sample: int) -> str:
        number = int(task.task_id.partition("/")[2])
        solution = f"{task.prompt}{task.canonical_solution}" if number % 2 else "def task_func(): 0"
        return f"{solution}\n```\n"

    settings = EvalSettings(
        model="canned",
        benchmark="bigcodebench",
        data=stdlib[0],
        split=split,
        mode="chat",
        limit=4,
        out=tmp_path / "run",
        workers=2,
        progress=False,
    )
    result, folder = evaluate(settings, Canned(write).model(chat_template="{{ messages }}"))
    found = {v.task_id: v.verdict == "passed" for v in result.verdicts}
    assert found == {task: int(task.partition("/")[2]) % 2 == 1 for task in found}
    assert len(found) == 4 and set(found.values()) == {True, False}
    facts = json.loads((folder / "results.json").read_text())
    assert facts["reference_solutions"]["passed"] == 4
    assert facts["settings"]["benchmark"] == f"bigcodebench-{split}-2"
    again = score_samples(
        folder / "samples.jsonl", "bigcodebench", data=stdlib[0], allow_partial=True, progress=False
    )
    assert {v.task_id: v.verdict == "passed" for v in again.verdicts} == found


def test_a_base_model_is_refused_before_work_begins(tmp_path: Path) -> None:
    settings = EvalSettings(
        model="canned",
        benchmark="bigcodebench",
        data=data(),
        split="instruct",
        mode="base",
        out=tmp_path / "run",
        progress=False,
    )
    with pytest.raises(UsageError, match="--split instruct asks"):
        evaluate(settings, Canned().model())
    assert not (tmp_path / "run").exists()


# Against the official scorer. --------------------------------------------------------------------


def mutants(body: str, count: int) -> list[str]:
    """Bodies of the function, changed in one place each."""
    changed = changed_programs("def task_func():\n" + body, count)
    return [program.partition("\n")[2] for program in changed]


def by_both(jobs: dict[str, Job], python: str, bench: BigCodeBench) -> list[dict[str, bool]]:
    """What passes here, and by the official function in the same interpreter."""
    ours = judge(list(jobs.values()), python, bench.preload)
    done = subprocess.run(
        [python, str(Path(__file__).with_name("bigcodebench_official.py"))],
        input=json.dumps({name: [job.program, job.test] for name, job in jobs.items()}),
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = {name: status == "pass" for name, status in json.loads(done.stdout).items()}
    return [ours, theirs]


@pytest.mark.slow
def test_verdicts_of_bigcodebench(bench: BigCodeBench) -> None:
    """References, completions and mutants, by `untrusted_check` and by us with one interpreter.

    APR_BIGCODEBENCH_PYTHON: an interpreter with numpy and the like, that imports bigcodebench.eval;
    not below /tmp, which tests write to.
    """
    python = os.environ.get(OFFICIAL_PYTHON)
    if python is None:
        pytest.skip(f"{OFFICIAL_PYTHON} is not set")
    programs: dict[str, tuple[str, dict[str, Any]]] = {}
    for row, sample in zip(rows(), samples(NAME), strict=True):
        task_id = row["task_id"]
        assert sample["task_id"] == task_id
        programs[f"{task_id} recorded"] = task_id, {"solution": sample["solution"]}
        bodies = [row["canonical_solution"], *mutants(row["canonical_solution"], 3)]
        for number, body in enumerate(bodies):
            programs[f"{task_id} {number}"] = task_id, {"completion": body}
    jobs = {
        name: bench.job(task, bench.program(task, made), name)
        for name, (task_id, made) in programs.items()
        for task in [bench.tasks[task_id]]
    }
    ours, theirs = by_both(jobs, python, bench)
    different = [name for name in jobs if ours[name] != theirs[name]]
    # Programs that choose at random fare differently from run to run.
    again = {
        f"{name} {i}": replace(jobs[name], job_id=f"{name} {i}")
        for name in different
        for i in range(REPEATS)
    }
    verdicts = by_both(again, python, bench)
    steady = {
        name: found
        for name in different
        for found in [[{v[f"{name} {i}"] for i in range(REPEATS)} for v in verdicts]]
        if found[0] != found[1]
    }
    assert steady == {} and len(different) <= len(jobs) // 50
    assert {True, False} == set(ours.values())


@pytest.mark.slow
def test_recorded_verdicts_with_libraries() -> None:
    """All 150, with the interpreter of the official scorer."""
    python = os.environ.get(OFFICIAL_PYTHON)
    if python is None:
        pytest.skip(f"{OFFICIAL_PYTHON} is not set")
    path = completions(f"{NAME}.jsonl.gz")
    result = score_samples(path, "bigcodebench", data=data(), python=python, progress=False)
    broken = result.references["broken"]
    found = {v.task_id: v.verdict == "passed" for v in result.verdicts if v.task_id not in broken}
    recorded = {row["task_id"]: row["status"] == "pass" for row in samples(NAME)}
    assert found == {task: recorded[task] for task in found}
    assert len(found) >= 140
