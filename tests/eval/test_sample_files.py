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
from apr.eval.generators.sample_files import other_data, read_samples, samples_sha256
from apr.eval.run.recorded import compared, comparison_notes, recorded_of
from apr.eval.run.scoring import score_samples
from apr.eval.run.store import StoredVerdict

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


def test_recorded_verdicts_are_compared(tmp_path: Path) -> None:
    """EvalPlus' results with a verdict that is wrong here, under a benchmark of the base tests."""
    recorded = results()
    recorded["eval"][TASKS[2].task_id][0]["base_status"] = "fail"
    path = tmp_path / "x_eval_results.json"
    path.write_text(json.dumps(recorded))
    found = score_samples(path, allow_partial=True, progress=False)
    differ = {"task": TASKS[2].task_id, "sample": 0, "recorded": "fail", "here": "pass"}
    assert found.to_json()["recorded_verdicts"] == {"samples": 3, "passed": 1, "differ": [differ]}
    text = "the file records 1 of 3 samples as passed; 1 differ here: HumanEval/2 (fail, here pass)"
    assert text in found.notes


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"base_status": "pass", "plus_status": "fail"}, {"base": True, "": False}),
        ({"base_status": "pass", "plus_status": "pass"}, {"base": True, "": True}),
        ({"base_status": "fail", "plus_status": "pass"}, {"base": False, "": False}),
        ({"base_status": "timeout", "plus_status": None}, {"base": False}),
        ({"passed": True, "result": "passed"}, {"": True}),
        ({"passed": False}, {"": False}),
        ({"status": "pass"}, {"": True}),
        ({"passed": "yes", "status": None}, {}),
        ({}, {}),
    ],
)
def test_what_other_scorers_record(row: dict[str, Any], found: dict[str, bool]) -> None:
    assert recorded_of(row) == found


def test_recorded_parts_are_compared_with_parts() -> None:
    def verdict(task: str, kind: str, part: str) -> StoredVerdict:
        return StoredVerdict(task, 0, kind, "", 1.0, 1.0, "full", "calls", False, part)

    verdicts = [
        verdict("a", "failed", "plus"),
        verdict("b", "passed", ""),
        verdict("c", "passed", ""),
    ]
    recorded = {("a", 0): {"base": True, "": True}, ("b", 0): {"base": True, "": True}}
    found = compared(recorded, verdicts, ("base",))
    assert (found["samples"], found["passed"]) == (2, 2)
    assert found["differ"] == [
        {
            "task": "a",
            "sample": 0,
            "recorded": "base pass, all pass",
            "here": "base pass, all fail",
        }
    ]
    assert comparison_notes(compared({("b", 0): {"": True}}, verdicts, ())) == (
        "the file records 1 of 1 samples as passed; all verdicts are the same here",
    )
    assert compared({}, verdicts, ("base",)) == {} and comparison_notes({}) == ()


class Plus(HumanEval):
    """Three tasks that call themselves the 378 of MBPP+."""

    name = "mbpp+"


def test_the_version_of_the_data_that_fits_is_named(tmp_path: Path) -> None:
    rows = [{"task_id": f"Mbpp/{n}", "solution": "x = 1"} for n in range(399)]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UsageError, match="'Mbpp/0' is not in mbpp") as raised:
        read_samples(path, Plus())
    assert raised.value.hint == (
        "mbpp+@v0.1.0 has 399 tasks, as the samples: --benchmark mbpp+@v0.1.0"
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows[:5]))
    with pytest.raises(UsageError) as raised:
        read_samples(path, Plus())
    assert not raised.value.hint


def test_results_of_other_data_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x_eval_results.json"
    benchmark = HumanEval()
    for digest, told in {
        "84f4b93a1270b492e4c54d5212da7a5b": "the file was scored with humaneval+@v0.1.9",
        "0" * 32: "",
        None: "",
    }.items():
        path.write_text(json.dumps(results(hash=digest)))
        note = other_data(path, benchmark)
        assert note.startswith(told) and bool(note) == bool(told)
    benchmark.data_sha256 = "e62f4130146963d969da64553f407a66e52d095adbfed4ee6733b4d59e14a3ed"
    path.write_text(json.dumps(results(hash="84f4b93a1270b492e4c54d5212da7a5b")))
    assert other_data(path, benchmark) == ""
