"""Preference pairs of a run: which samples, behind which prompt, told apart by how they failed."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.align.preferences import preference_of
from apr.common.errors import AprError, UsageError
from apr.data.pair_settings import PairSettings
from apr.data.pairs import choose_pairs, write_pairs
from apr.data.response_settings import ResponseSettings
from apr.data.responses import write_responses
from apr.engine.request import Sampling
from apr.eval.benchmarks.task import Task
from apr.eval.run.evaluate import evaluate, trained_on
from apr.text import load_tokenizer
from eval.runs import SETTINGS, Canned
from train.tiny import write_tokenizer

WRONG, RAISES, NO_CODE = "    return None\n", "    raise KeyError(1)\n", "    return ((\n"


def write(task: Task, sample: int) -> str:
    """Task 0: two right, three kinds of wrong. Task 1: all wrong. Task 2: one right, one wrong."""
    number, right = int(task.task_id.split("/")[1]), task.canonical_solution
    by_task = {
        0: (right, "    # right\n" + right, WRONG, RAISES, NO_CODE),
        1: (WRONG,) * 5,
        2: (right, right, right, right, WRONG),
    }
    return by_task[number][sample]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "run"
    warm = Sampling(temperature=0.8)
    evaluate(replace(SETTINGS, out=out, limit=3, n_samples=5, sampling=warm), Canned(write).model())
    return out


def rows(run: Path, path: Path, **settings: Any) -> list[dict[str, Any]]:
    write_pairs([run], path, PairSettings(**settings))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_sample_once_or_every_pair(run: Path, tmp_path: Path) -> None:
    found = rows(run, tmp_path / "a.jsonl")
    assert [row["task_id"] for row in found] == ["HumanEval/0", "HumanEval/0", "HumanEval/2"]
    assert all(row["benchmark"] == "humaneval" and row["model"] == "canned" for row in found)
    samples = [tuple(row["samples"]) for row in found[:2]]
    assert {good for good, _ in samples} == {0, 1} and len({bad for _, bad in samples}) == 2
    every = rows(run, tmp_path / "b.jsonl", selection="all")
    # Four samples of task 2 wrote the same: one pair.
    assert [row["task_id"] for row in every] == ["HumanEval/0"] * 6 + ["HumanEval/2"]
    assert every == rows(run, tmp_path / "c.jsonl", selection="all")
    other = rows(run, tmp_path / "d.jsonl", selection="all", seed=1)
    assert other != every and sorted(map(str, other)) == sorted(map(str, every))
    assert len(rows(run, tmp_path / "e.jsonl", selection="all", per_task=2)) == 3


def test_prompts_are_as_the_model_was_asked(run: Path, tmp_path: Path) -> None:
    row = rows(run, tmp_path / "a.jsonl")[0]
    assert row["prompt"].startswith("from typing import List") and row["prompt"].endswith('"""')
    assert row["chosen"].endswith("return False\n")
    write_tokenizer(tmp_path)
    one = preference_of(row, load_tokenizer(tmp_path))
    assert one.good == (True, False)


def test_failures_are_told_apart(run: Path, tmp_path: Path) -> None:
    found = rows(run, tmp_path / "a.jsonl", selection="all")
    kinds = {row["samples"][1]: row["failure"] for row in found if row["task_id"] == "HumanEval/0"}
    assert kinds == {2: "assertion", 3: "exception", 4: "no-code"}
    only = rows(run, tmp_path / "b.jsonl", selection="all", failures=("exception",))
    assert {row["failure"] for row in only} == {"exception"}


def test_unknown_verdicts_and_suspects_are_no_pairs(run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    of_two = results["per_task"]["HumanEval/2"]
    of_two[4]["verdict"] = "sandbox-error"
    for sample in of_two[:4]:
        sample["suspect"] = ["why"]
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("run.sqlite", "manifest.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / "results.json").write_text(json.dumps(results))
    counts = write_pairs([copy], tmp_path / "a.jsonl", PairSettings())
    assert (counts.unknown, counts.suspect, counts.pairs) == (1, 4, 2)
    # A verdict that is unknown stays out, though suspects are asked for.
    assert write_pairs([copy], tmp_path / "b.jsonl", PairSettings(suspect=True)).pairs == 2


def test_small_edits_come_first_and_equals_are_dropped() -> None:
    texts = {0: "return a + b", 1: "return a - b", 2: "x = 1\nwhile x: x += 1", 3: "return a + b "}
    near = PairSettings(selection="all", minimal_edit=True, near=0.9)
    assert choose_pairs(texts, [0], [1, 2, 3], near, "s") == ([(0, 1), (0, 2)], 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"failures": ("wrong",)}, "`failures` wrong is unknown"),
        ({"per_task": 0}, "`per_task` is 0"),
        ({"near": 0.0}, "`near` is 0"),
        ({"selection": "some"}, "`selection` some is unknown"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PairSettings(**settings)


def test_runs_that_give_no_pairs(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no results\.json"):
        write_pairs([tmp_path], tmp_path / "a.jsonl", PairSettings())
    with pytest.raises(AprError, match=r"no pair: 3 of 3 tasks have samples of one kind"):
        write_pairs([run], tmp_path / "a.jsonl", PairSettings(failures=("timeout",)))
    assert not (tmp_path / "a.jsonl").exists()
    with sqlite3.connect(run / "run.sqlite") as database:
        assert database.execute("SELECT count(*) FROM generation").fetchone() == (15,)


def test_an_evaluation_says_what_a_model_learned_from(tmp_path: Path) -> None:
    result = {"data": {"benchmarks": {"humaneval": 12, "mbpp": 3}}}
    manifest = {"settings": {"result": result}}
    (tmp_path / "apr_manifest.json").write_text(json.dumps(manifest))
    (note,) = trained_on("humaneval+", "smollm2-135m", str(tmp_path))
    assert note == f"{tmp_path} was trained on 12 rows that were made from this benchmark"
    assert trained_on("cruxeval-output", str(tmp_path)) == []


def test_answers_of_a_run_become_training_data(run: Path, tmp_path: Path) -> None:
    def answers(**settings: Any) -> list[dict[str, Any]]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        write_responses([run], path, ResponseSettings(**settings))
        return [json.loads(line) for line in path.read_text().splitlines()]

    passed = answers()
    # Of task 2 four samples wrote the same.
    assert [row["task_id"] for row in passed] == ["HumanEval/0"] * 2 + ["HumanEval/2"]
    assert all(row["verdict"] == "passed" and row["model"] == "canned" for row in passed)
    assert passed[0]["prompt"].endswith('"""') and "return" in passed[0]["completion"]
    assert len(answers(keep="failed-too")) == 5 + 1 + 2
    assert len(answers(keep="all", per_task=1)) == 3


def test_thoughts_are_kept_or_dropped(tmp_path: Path) -> None:
    def think(task: Task, sample: int) -> str:
        thought = "<think>\nlet me see\n" + ("" if sample == 2 else "</think>\n")
        return thought + f"```python\n{task.prompt}{task.canonical_solution}# {sample}\n```"

    out = tmp_path / "run"
    asked = replace(SETTINGS, out=out, limit=1, n_samples=3, mode="chat", prefill=False,
                    sampling=Sampling(temperature=0.8))  # fmt: skip
    evaluate(asked, Canned(think).model(chat_template="{{ messages }}"))
    counts = write_responses([out], tmp_path / "a.jsonl", ResponseSettings(keep="failed-too"))
    assert (counts.answers, counts.empty) == (2, 1)  # a thought that did not end is no answer
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert first["messages"][-1]["content"].startswith("<think>\nlet me see")
    write_responses([out], tmp_path / "b.jsonl", ResponseSettings(thoughts="drop"))
    for line in (tmp_path / "b.jsonl").read_text().splitlines():
        assert json.loads(line)["messages"][-1]["content"].startswith("```python\n")
