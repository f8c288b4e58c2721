"""Runs listed, read and compared."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from apr.cli.main import app
from apr.common.errors import UsageError
from apr.engine.request import Sampling
from apr.eval.benchmarks.task import Task
from apr.eval.history.compare import compare, mcnemar, permutation_p
from apr.eval.history.read import find_runs, in_order, read_run, select
from apr.eval.history.table import history_table, samples_json
from apr.eval.run.evaluate import evaluate

from .runs import SETTINGS, Canned


def run(out: Path, right: set[int], **changes: Any) -> Path:
    def write(task: Task, sample: int) -> str:
        number = int(task.task_id.split("/")[1])
        return task.canonical_solution if number in right else "    return 'nothing'\n"

    settings = replace(SETTINGS, limit=8, out=out, **changes)
    return evaluate(settings, Canned(write).model())[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "a", {0, 1, 2, 3})
    run(folder / "b", {0, 1, 4, 5, 6}, seed=1)
    return folder


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"HumanEval/{i}" for i in numbers)


def test_task_by_task(runs: Path) -> None:
    found = compare(read_run(runs / "a"), read_run(runs / "b"))
    assert found.fixed == ids(4, 5, 6)
    assert found.broken == ids(2, 3)
    assert (found.both_pass, found.both_fail, found.flaky) == (ids(0, 1), ids(7), {})
    score = found.scores[1]
    assert (score.a, score.b, score.points) == (0.5, 0.625, 0.125)
    assert score.low < 0.125 < score.high
    assert found.scores.keys() == {1}
    assert (found.p_value, found.test) == (mcnemar(3, 2), "McNemar, exact")
    assert found.differing == {"seed": (0, 1)}
    assert compare(read_run(runs / "b"), read_run(runs / "a")).broken == found.fixed


def test_flaky_tasks_and_several_samples(tmp_path: Path, runs: Path) -> None:
    """Task 0 passes with each of ten samples, 7 with none, the others with half of them."""

    def write(task: Task, sample: int) -> str:
        number = int(task.task_id.split("/")[1])
        right = number == 0 or (number != 7 and sample % 2)
        return task.canonical_solution if right else "    return 'nothing'\n"

    settings = replace(
        SETTINGS, limit=8, out=tmp_path / "c", n_samples=10, sampling=Sampling(temperature=0.5)
    )
    _, folder = evaluate(settings, Canned(write).model())
    one, ten = read_run(runs / "a"), read_run(folder)
    found = compare(one, ten)
    assert found.flaky == {
        **dict.fromkeys(ids(1, 2, 3), (1.0, 0.5)),
        **dict.fromkeys(ids(4, 5, 6), (0.0, 0.5)),
    }
    assert (found.both_pass, found.both_fail) == (ids(0), ids(7))
    assert found.test == "paired permutation of tasks, exact"
    half = Fraction(1, 2)
    assert found.p_value == permutation_p([Fraction(0)] * 2 + [half] * 3 + [-half] * 3) == 1.0
    assert found.scores[1].points == 0.0
    assert compare(ten, ten).scores.keys() == {1, 10}


def test_another_verdict_on_the_same_completion_is_flaky(tmp_path: Path, runs: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(runs / "a", folder)
    results = json.loads((folder / "results.json").read_text())
    results["per_task"]["HumanEval/2"][0] |= {"verdict": "timeout", "detail": "timed out"}
    (folder / "results.json").write_text(json.dumps(results))
    found = compare(read_run(runs / "a"), read_run(folder))
    assert found.flaky == {"HumanEval/2": (1.0, 0.0)}
    assert found.broken == ()


def test_runs_that_cannot_be_compared(tmp_path: Path, runs: Path) -> None:
    other = json.loads((runs / "a" / "results.json").read_text())
    for change, complaint in (
        ({"benchmark": "mbpp"}, "a run of humaneval"),
        ({"settings": {**other["settings"], "data": "x"}}, "data of the two runs differs"),
        ({"per_task": {}}, "has no verdicts yet"),
        ({"per_task": {"x": other["per_task"]["HumanEval/0"]}}, "no task in common"),
    ):
        path = tmp_path / "other.json"
        path.write_text(json.dumps({**other, **change}))
        with pytest.raises(UsageError, match=complaint):
            compare(read_run(runs / "a"), read_run(path))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"benchmark": "x"}', None])
def test_what_is_no_result(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"r\.json"):
        read_run(path)


def test_history(runs: Path) -> None:
    assert [r.path.name for r in find_runs([runs])] == ["a", "b"]
    assert find_runs([runs], benchmark="mbpp") == []
    assert len(find_runs([runs / "a"])) == 1
    with pytest.raises(UsageError, match="no such folder"):
        find_runs([runs / "nowhere"])


def test_runs_in_order(runs: Path) -> None:
    a, b = find_runs([runs])
    assert a.finished <= b.finished
    assert in_order([b, a], "score") == [a, b]
    assert in_order([b, a], "model") == [a, b], "the same: by their folders"


def test_a_run_that_is_not_finished(tmp_path: Path, runs: Path) -> None:
    folder = tmp_path / "stopped"
    folder.mkdir()
    shutil.copy(runs / "a" / "run.sqlite", folder)
    (found,) = find_runs([tmp_path])
    finished = read_run(runs / "a")
    assert (found.complete, found.finished, found.benchmark) == (False, "", "humaneval")
    assert found.passes() == finished.passes()
    assert "not finished" in call("results", str(tmp_path))
    assert "the same apr eval command goes on" in call("results", str(folder))
    assert json.loads(call("results", str(tmp_path), "--json"))[0]["complete"] is False


def test_failures_with_programs(runs: Path) -> None:
    run = read_run(runs / "a")
    assert [s.task_id for s in select(run, failed=True)] == list(ids(4, 5, 6, 7))
    found = samples_json(run, select(run, failed=True))
    assert all(s["program"].endswith("    return 'nothing'\n") and s["detail"] for s in found)
    assert all(s["program"].startswith(("def ", "\n", "from ")) for s in found), "with its prompt"
    (passed,) = select(run, "HumanEval/0")
    assert passed.verdict == "passed"
    with pytest.raises(UsageError, match="no task X/1"):
        select(run, "X/1")


def test_programs_where_they_are_not_stored(tmp_path: Path, runs: Path) -> None:
    file = tmp_path / "r.json"
    shutil.copy(runs / "a" / "results.json", file)
    assert "(the program is not stored here)" in call("results", str(file), "--failed")


def test_notes_are_told_again(tmp_path: Path, runs: Path) -> None:
    results = json.loads((runs / "a" / "results.json").read_text())
    file = tmp_path / "r.json"
    file.write_text(json.dumps({**results, "notes": ["4 of 4 samples have no answer"]}))
    assert "note: 4 of 4 samples have no answer" in call("results", str(file))


def call(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert done.exception is None or done.exit_code == 0, done.exception
    return done.stdout


def test_a_narrow_table_is_readable(runs: Path) -> None:
    """What tells runs apart keeps its words whole; the rest is named as left out."""
    out = io.StringIO()
    Console(width=80, file=out).print(history_table(find_runs([runs]), 80))
    shown = out.getvalue()
    assert "benchmark" in shown and "humaneval" in shown and "62.5 %" in shown
    assert "isolation: 130 columns are needed, or --json" in " ".join(shown.split())


def test_results_on_the_command_line(runs: Path) -> None:
    listed = json.loads(call("results", str(runs), "--json", "--sort", "score"))
    assert [row["pass@1"] for row in listed] == [0.5, 0.625]
    assert "62.5 %" in call("results", str(runs))
    assert "no runs" in call("results", str(runs), "--model", "another")
    assert "return 'nothing'" in call("results", str(runs / "a"), "--failed")
    assert "HumanEval/3" in call("results", str(runs / "a"), "--task", "HumanEval/3")
    assert "no such sample" in call("results", str(runs / "a"), "--suspect")
    one = json.loads(call("results", str(runs / "a"), "--json"))
    assert one["per_task"]["HumanEval/0"][0]["verdict"] == "passed"
    assert "HumanEval/7" in call("results", str(runs / "a"))
    failed = json.loads(call("results", str(runs / "a"), "--failed", "--json"))
    assert [row["task_id"] for row in failed] == list(ids(4, 5, 6, 7))


def test_compare_on_the_command_line(runs: Path) -> None:
    both = str(runs / "a"), str(runs / "b")
    found = json.loads(call("compare", *both, "--json"))
    assert found["fixed"] == list(ids(4, 5, 6))
    assert found["scores"]["pass@1"]["difference"] == 0.125
    shown = call("compare", *both)
    assert "+12.5 points" in shown and "McNemar" in shown and "no difference is shown" in shown
    broken = call("compare", *both, "--show", "broken")
    assert broken.count("=== HumanEval/") == 4 and "return 'nothing'" in broken
    assert "no task is flaky" in call("compare", *both, "--show", "flaky")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["results", "{}", "{}", "--failed"], "show one run"),
        (["results", "{}", "--sort", "size"], "--sort size"),
        (["compare", "{}/a", "{}/b", "--show", "new"], "--show new"),
        (["compare", "{}/a", "{}/none"], "none: no such file"),
    ],
)
def test_bad_requests(runs: Path, arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(app, [part.replace("{}", str(runs)) for part in arguments])
    assert isinstance(done.exception, UsageError) and complaint in str(done.exception)
