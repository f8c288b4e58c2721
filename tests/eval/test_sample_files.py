"""Samples as EvalPlus leaves them: folders of programs, and results that hold the programs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.eval.benchmarks.humaneval import HumanEval
from apr.eval.generators.sample_files import read_samples, samples_sha256
from apr.eval.run.scoring import score_samples

HUMANEVAL = HumanEval()
TASKS = list(HUMANEVAL.tasks.values())[:3]


def solution(number: int, right: bool = True) -> str:
    body = TASKS[number].canonical_solution if right else "    return None\n"
    return TASKS[number].prompt + body


def folder(path: Path, programs: dict[str, str]) -> Path:
    for name, text in programs.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def test_a_folder(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "samples",
        {
            "HumanEval_0/0.py": solution(0),
            "HumanEval_0/1.py": solution(0, False),
            "HumanEval_1/0.py": solution(1, False),
            "HumanEval_1/1.py": solution(1, False),
            "HumanEval_1/notes.txt": "not a program",
            "config.json": "{}",
            ".cache/x.py": "",
            "__pycache__/x.py": "",
        },
    )
    result = score_samples(path, ks=(1, 2), allow_partial=True, progress=False)
    assert (result.passes[1][0], result.passes[2][0], result.subject) == (0.25, 0.5, "samples")
    verdicts = [(v.task_id, v.sample, v.verdict) for v in result.verdicts]
    assert verdicts[:2] == [("HumanEval/0", 0, "passed"), ("HumanEval/0", 1, "failed")]


def test_programs_count_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    texts = {f"HumanEval_0/{n}.py": f"# {n}\n" for n in (10, 2, 0, 1)}
    rows = read_samples(folder(tmp_path, {**texts, "HumanEval_0/last.py": "# last\n"}), HUMANEVAL)
    assert [row["solution"] for row in rows] == [f"# {n}\n" for n in (0, 1, 2, 10, "last")]


def test_a_folder_s_checksum_is_that_of_its_programs(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {"HumanEval_0/0.py": "a", "HumanEval_1/0.py": "b"})
    same = folder(tmp_path / "two", {"HumanEval_1/0.py": "b", "HumanEval_0/0.py": "a", "x": "y"})
    assert samples_sha256(one) == samples_sha256(same)
    moved = folder(tmp_path / "three", {"HumanEval_0/0.py": "a", "HumanEval_2/0.py": "b"})
    longer = folder(tmp_path / "four", {"HumanEval_0/0.py": "a", "HumanEval_1/0.py": "bb"})
    assert len({samples_sha256(path) for path in (one, moved, longer)}) == 3


def results(**changes: Any) -> dict[str, Any]:
    """As evalplus/evaluate.py writes them."""
    found: dict[str, list] = {}
    for number, task in enumerate(TASKS):
        right = number != 1
        found[task.task_id] = [
            {
                "task_id": task.task_id,
                "solution": solution(number, right),
                "base_status": "pass" if right else "fail",
                "plus_status": "pass" if right else "fail",
                "base_fail_tests": [],
                "plus_fail_tests": [],
            }
        ]
    return {"date": "2024-06-01 12:00", "hash": "0", "eval": found, "pass_at_k": {}, **changes}


@pytest.mark.parametrize("name", ["samples_eval_results.json", "samples.eval_results.json"])
def test_results(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(results()))
    result = score_samples(path, allow_partial=True, progress=False)
    said = {t: s[0]["base_status"] == "pass" for t, s in results()["eval"].items()}
    assert {v.task_id: v.passed() for v in result.verdicts} == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not a JSON object"),
        ("{", "is not JSON"),
        ("{}", "has no object in field 'eval'"),
        ('{"eval": {"HumanEval/0": [5]}}', "task HumanEval/0 sample 0 is no object"),
        ('{"eval": {"HumanEval/0": 5}}', "task HumanEval/0 sample 0 is no object"),
        ('{"eval": {"HumanEval/0": [{}]}}', "HumanEval/0 sample 0 has neither a 'completion' nor"),
        ('{"eval": {"Mbpp/2": [{"solution": ""}]}}', "'Mbpp/2' is not in humaneval"),
        ('{"eval": {}}', "has no samples"),
    ],
)
def test_results_of_another_form(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "eval_results.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_samples(path, HUMANEVAL)


def test_folders_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no samples"):
        read_samples(tmp_path, HUMANEVAL)
    folder(tmp_path, {"Mbpp_2/0.py": ""})
    with pytest.raises(UsageError, match=r"Mbpp_2 is named after no task .*HumanEval_0/0\.py"):
        read_samples(tmp_path, HUMANEVAL)
    other = folder(tmp_path / "other", {"HumanEval_0/0.py": ""})
    (other / "HumanEval_0" / "1.py").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"1\.py is not UTF-8 text"):
        read_samples(other, HUMANEVAL)


OFFICIAL = """
import json, sys
from evalplus.data.utils import load_solutions, write_directory
write_directory(sys.argv[1], json.load(sys.stdin))
print(json.dumps([[row["task_id"], row["solution"]] for row in load_solutions(sys.argv[1])]))
"""


def test_folders_of_evalplus_itself(tmp_path: Path) -> None:
    """Written and read there, and read here. APR_EVALPLUS_PYTHON: Python that has evalplus."""
    python = os.environ.get("APR_EVALPLUS_PYTHON")
    if python is None:
        pytest.skip("APR_EVALPLUS_PYTHON is not set")
    rows = [
        {"task_id": task.task_id, "solution": f"{solution(i)}# ä, {n}\r\n"}
        for i, task in enumerate(TASKS)
        for n in range(12)
    ]
    done = subprocess.run(
        [python, "-c", OFFICIAL, str(tmp_path / "samples")],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [(r["task_id"], r["solution"]) for r in read_samples(tmp_path / "samples", HUMANEVAL)]
    assert sorted(ours) == sorted(map(tuple, json.loads(done.stdout)))
    assert ours == [(r["task_id"], r["solution"].replace("\r\n", "\n")) for r in rows]
