"""Contamination: tasks that are in training data, and samples that repeat reference solutions."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apr.cli.main import app
from apr.common.errors import UsageError
from apr.data.decontaminate import decontaminate, write_report
from apr.eval.benchmarks import load_benchmark
from apr.eval.benchmarks.task import Task
from apr.eval.generators import Submission
from apr.eval.history.contamination import contamination
from apr.eval.history.read import Run, read_run
from apr.eval.run.evaluate import evaluate
from apr.eval.run.judging import reference_of
from apr.eval.run.scoring import score_samples
from apr.eval.run.suspect import LEAST_WORDS, repeated_references

from .runs import SETTINGS, Canned
from .shared import completions, shared_data

LEAKED = ("HumanEval/1", "HumanEval/3", "HumanEval/5", "HumanEval/6")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Right for what was leaked but HumanEval/5, and for HumanEval/0."""

    def write(task: Task, sample: int) -> str:
        right = {*LEAKED, "HumanEval/0"} - {"HumanEval/5"}
        return task.canonical_solution if task.task_id in right else "    return None\n"

    out = tmp_path_factory.mktemp("run")
    return read_run(evaluate(replace(SETTINGS, limit=10, out=out), Canned(write).model())[1])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is found in training data that holds four tasks among other code."""
    folder = tmp_path_factory.mktemp("report")
    tasks = load_benchmark("humaneval").tasks
    rows = [{"text": tasks[name].prompt + tasks[name].canonical_solution} for name in LEAKED]
    rows += [{"text": Path(re.__file__).read_text()}, {"text": Path(json.__file__).read_text()}]
    data = folder / "train.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = folder / "found.json"
    write_report(decontaminate(data, ["humaneval"]), path)
    return path


def test_the_score_of_what_was_seen_and_of_the_others(run: Run, report: Path) -> None:
    found = contamination(run, report)
    assert found.in_data == LEAKED
    assert found.others == tuple(f"HumanEval/{i}" for i in (0, 2, 4, 7, 8, 9))
    assert found.scores_in_data[1][0] == 3 / 4 and found.scores_of_others[1][0] == 1 / 6
    shares = 4 * found.scores_in_data[1][0] + 6 * found.scores_of_others[1][0]
    assert shares / 10 == pytest.approx(run.results["pass@1"])
    low, high = found.to_json()["in_data"]["pass@1_ci95"]
    assert low < 0.75 < high <= 1


def test_on_the_command_line(run: Run, report: Path) -> None:
    command = ["results", str(run.path), "--contamination", str(report)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout) == contamination(run, report).to_json()
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "150"}).stdout
    assert "in the training data" in shown and "75.0 %" in shown and "16.7 %" in shown
    two = CliRunner().invoke(app, [*command[:2], *command[1:]])
    assert isinstance(two.exception, UsageError) and "is of one run" in str(two.exception)


def test_names_of_the_same_tasks(run: Run, report: Path, tmp_path: Path) -> None:
    """humaneval+ has humaneval's tasks; MBPP's rows have numbers for names."""
    value = json.loads(report.read_text())
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**value, "tasks": {"humaneval+@v0.1.9": list(LEAKED)}}))
    assert contamination(run, path).in_data == LEAKED
    path.write_text(json.dumps({**value, "tasks": {"humaneval": ["3"]}}))
    assert contamination(run, path).in_data == ("HumanEval/3",)
    path.write_text(json.dumps({**value, "tasks": {"humaneval": []}}))
    clean = contamination(run, path)
    assert (clean.in_data, clean.scores_in_data) == ((), {})
    assert clean.scores_of_others[1][0] == run.results["pass@1"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        ("{", "is no report of apr data decontaminate"),
        ("[]", "is no report"),
        ('{"data": "x", "tasks": 3}', "is no report"),
        ('{"data": "x", "tasks": {"mbpp": []}}', "is about mbpp, the run about humaneval"),
    ],
)
def test_bad_reports(run: Run, tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=complaint):
        contamination(run, path)


def test_samples_that_repeat_their_reference(run: Run, tmp_path: Path) -> None:
    """All three right ones do; that of HumanEval/0, /1 and /6 is long enough to say so."""
    tasks = load_benchmark("humaneval").tasks
    long = [
        name
        for name in run.passes()
        if len(re.findall(r"\w+", tasks[name].canonical_solution)) >= LEAST_WORDS
    ]
    wanted = [name for name in long if run.passes()[name] == [True]]
    assert 0 < len(wanted) < len(long)
    found = {"samples": len(wanted), "of": len(long), "tasks": wanted}
    assert run.results["repeats_of_references"] == found
    rows = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    file = tmp_path / "samples.jsonl"
    spread = [{**row, "completion": row["completion"].replace("\n", "\n\n")} for row in rows]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in spread))
    again = score_samples(file, allow_partial=True, progress=False)
    assert again.repeated == found, "layout makes no difference"


@pytest.mark.parametrize(
    ("name", "benchmark", "data"),
    [
        ("humaneval_qwen2.5-coder-1.5b-base", "humaneval+", "HumanEvalPlus-v0.1.9"),
        ("humaneval_starcoder2-15b-instruct-v0.1", "humaneval+", "HumanEvalPlus-v0.1.9"),
        ("mbpp_qwen2.5-coder-1.5b-base", "mbpp+", "MbppPlus-v0.1.0"),
    ],
)
def test_recorded_samples_of_models_do_not(name: str, benchmark: str, data: str) -> None:
    known = load_benchmark(benchmark, shared_data(f"evalplus/{data}.jsonl.gz"))
    with gzip.open(completions(f"{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
        rows = list(map(json.loads, lines))
    names = [row["task_id"] for row in rows]
    programs = [known.program(known.tasks[row["task_id"]], row) for row in rows]
    found = repeated_references(known, submitted(dict(zip(names, programs, strict=True))))
    assert found["samples"] == 0 and found["of"] > 90
    found = repeated_references(
        known, {(name, 0): reference_of(known, known.tasks[name]) for name in names}
    )
    assert found["samples"] == found["of"], "the references do"


def test_an_infilled_gap_is_told_by_its_surroundings() -> None:
    path = shared_data("humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz")
    known = load_benchmark("infilling-single-line", path)
    whole = {name: task.canonical_solution for name, task in known.tasks.items()}
    assert repeated_references(known, submitted(whole)) == {}


def submitted(programs: dict[str, str]) -> dict[tuple[str, int], Submission]:
    """One sample a task."""
    return {(name, 0): Submission(name, 0, program) for name, program in programs.items()}
