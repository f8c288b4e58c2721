"""Runs listed, read and compared; significance against scipy's numbers and closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from apr.cli.main import app
from apr.engine.request import Sampling
from apr.errors import UsageError
from apr.eval.compare import compare
from apr.eval.evaluate import evaluate
from apr.eval.history import failures, find_runs, read_run
from apr.eval.significance import mcnemar, paired_interval, paired_permutation
from apr.eval.task import Task

from .runs import SETTINGS, Canned

# scipy.stats.binomtest(min(b, c), b + c).pvalue, scipy 1.17.1; nothing to test is 1
SCIPY = {
    (0, 0): 1.0,
    (1, 0): 1.0,
    (5, 0): 0.0625,
    (10, 2): 0.03857421875,
    (12, 5): 0.143463134765625,
    (30, 10): 0.0022214337732293643,
    (7, 7): 1.0,
}


@pytest.mark.parametrize(("fixed", "broken"), SCIPY)
def test_mcnemar(fixed: int, broken: int) -> None:
    assert mcnemar(fixed, broken) == pytest.approx(SCIPY[fixed, broken], rel=1e-12)
    assert mcnemar(broken, fixed) == mcnemar(fixed, broken)


def test_permutation_against_all_signs() -> None:
    """Within four standard errors of the exact p-value, from all 2**10 signs."""
    rng = np.random.default_rng(5)
    a, b = rng.random(10), rng.random(10) + 0.15
    d = b - a
    sums = [abs(np.dot(signs, d)) for signs in product((-1, 1), repeat=10)]
    exact = float(np.mean(np.array(sums) >= abs(d.sum()) - 1e-12))
    found = paired_permutation(a.tolist(), b.tolist())
    assert abs(found - exact) < 4 * (exact * (1 - exact) / 10_000) ** 0.5 + 1e-4
    assert paired_permutation([1.0] * 5, [1.0] * 5) == 1.0


def test_interval_is_that_of_the_mean() -> None:
    """Of many tasks: the normal approximation, within 5 % of its width."""
    rng = np.random.default_rng(2)
    a, b = (rng.random(500) < 0.3).astype(float), (rng.random(500) < 0.4).astype(float)
    low, high = paired_interval(a.tolist(), b.tolist())
    d = b - a
    half = 1.96 * d.std() / len(d) ** 0.5
    assert (high - low) == pytest.approx(2 * half, rel=0.05)
    assert (low + high) / 2 == pytest.approx(d.mean(), abs=0.1 * half)


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


def test_task_by_task(runs: Path) -> None:
    found = compare(read_run(runs / "a"), read_run(runs / "b"))
    assert found.fixed == ("HumanEval/4", "HumanEval/5", "HumanEval/6")
    assert found.broken == ("HumanEval/2", "HumanEval/3")
    assert (found.both_pass, found.both_fail, found.flaky) == (2, 1, ())
    assert found.scores == (0.5, 0.625)
    assert found.p_value == mcnemar(3, 2) == 1.0
    assert found.differing == {"seed": (0, 1)}
    assert found.interval[0] < 0.125 < found.interval[1]


def test_flaky_tasks_and_several_samples(tmp_path: Path, runs: Path) -> None:
    def write(task: Task, sample: int) -> str:
        return task.canonical_solution if sample < 2 else "    return 'nothing'\n"

    settings = replace(
        SETTINGS, limit=8, out=tmp_path / "c", n_samples=4, sampling=Sampling(temperature=0.5)
    )
    _, folder = evaluate(settings, Canned(write).model())
    found = compare(read_run(runs / "a"), read_run(folder))
    assert len(found.flaky) == 8
    assert found.test == "paired permutation of tasks"
    assert found.difference == 0.0


def test_runs_that_cannot_be_compared(tmp_path: Path, runs: Path) -> None:
    other = json.loads((runs / "a" / "results.json").read_text())
    for change, complaint in (
        ({"benchmark": "mbpp"}, "a run of humaneval"),
        ({"settings": {**other["settings"], "data": "x"}}, "data of the two runs differs"),
        ({"per_task": {}}, "no task in common"),
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


def test_failures_with_programs(runs: Path) -> None:
    found = failures(read_run(runs / "a"))
    assert [f.task_id for f in found] == [f"HumanEval/{i}" for i in (4, 5, 6, 7)]
    assert all("return 'nothing'" in f.completion and f.detail for f in found)
    (passed,) = failures(read_run(runs / "a"), "HumanEval/0")
    assert passed.verdict == "passed"
    with pytest.raises(UsageError, match="no task X/1"):
        failures(read_run(runs / "a"), "X/1")


def call(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert done.exception is None or done.exit_code == 0, done.exception
    return done.stdout


def test_the_command_line(runs: Path) -> None:
    listed = json.loads(call("results", str(runs), "--json"))
    assert [row["pass@1"] for row in listed] == [0.5, 0.625]
    assert "62.5 %" in call("results", str(runs))
    assert "return 'nothing'" in call("results", str(runs / "a"), "--failed")
    assert "HumanEval/3" in call("results", str(runs / "a"), "--task", "HumanEval/3")
    found = json.loads(call("compare", str(runs / "a"), str(runs / "b"), "--json"))
    assert found["fixed"] == ["HumanEval/4", "HumanEval/5", "HumanEval/6"]
    shown = call("compare", str(runs / "a"), str(runs / "b"))
    assert "+12.5 points" in shown and "McNemar" in shown
