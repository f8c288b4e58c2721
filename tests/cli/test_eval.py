"""`apr eval`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from convert import models
from convert.models import gguf_file, small_model
from eval.fake_server import Asked, FakeServer, Reply, completion
from eval.runs import Canned
from eval.shared import shared_data

from .command import Command


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Canned:
    """Every model reference means canned answers; runs/ is in tmp_path."""
    canned = Canned()
    monkeypatch.setattr("apr.eval.generators.model.local_model", lambda settings: canned.model())
    monkeypatch.chdir(tmp_path)
    return canned


def test_table_and_files(apr: Command, canned: Canned, tmp_path: Path) -> None:
    done = apr("eval", "m", "--benchmark", "humaneval", "--limit", 4, "--per-task")
    assert done.code == 0
    assert "50.0 %" in done.out and "HumanEval/3" in done.out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("humaneval-canned-")
    assert {"manifest.json", "results.json", "samples.jsonl"} <= {p.name for p in folder.iterdir()}
    assert f"runs/{folder.name}" in done.out


def test_json_is_all_there_is_on_stdout(apr: Command, canned: Canned) -> None:
    done = apr("eval", "m", "--limit", 2, "--json", "--out", "here")
    value = json.loads(done.out)
    assert (value["pass@1"], value["folder"], value["subject"]) == (0.5, "here", "canned")


def test_samples_and_pass_at_k(apr: Command, canned: Canned) -> None:
    arguments = ["--limit", 2, "--n-samples", 3, "--temperature", 0.8, "--k", "1,3", "--json"]
    value = json.loads(apr("eval", "m", *arguments).out)
    assert (value["pass@1"], value["pass@3"]) == (pytest.approx(2 / 3), 1.0)
    assert value["settings"]["sampling"]["temperature"] == 0.8


def test_the_same_command_again_generates_nothing(apr: Command, canned: Canned) -> None:
    first = json.loads(apr("eval", "m", "--limit", 3, "--json").out)
    second = json.loads(apr("eval", "m", "--limit", 3, "--json").out)
    assert (canned.loads, len(canned.asked)) == (1, 3)
    assert second == first


def test_show_samples(apr: Command, canned: Canned) -> None:
    done = apr("eval", "m", "--limit", 3, "--show-samples", 2)
    assert "HumanEval/0" in done.out and "return None" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "instruct"], "--mode instruct"),
        (["--newline", "two"], "--newline two"),
        (["--sandbox-level", "9"], "--sandbox-level 9"),
        (["--n-samples", "5"], "temperature 0"),
        (["--k", "10"], "--k 10 with --n-samples 1"),
        (["--limit", "0"], "--limit is 0"),
        (["--benchmark", "mmlu"], "mmlu"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--temperature", "-1"], "--temperature is -1"),
        (["--top-p", "0"], "--top-p is 0"),
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--max-concurrency", "0"], "--max-concurrency is 0"),
        (["--max-concurrency", "-3"], "--max-concurrency is -3"),
        (["--workers", "0"], "--workers is 0"),
        (["--n-samples", "0"], "--n-samples is 0"),
        (["--top-k", "-1"], "--top-k is -1"),
        (["--show-samples", "-1"], "--show-samples is -1"),
    ],
)
def test_bad_requests(apr: Command, canned: Canned, arguments: list[Any], message: str) -> None:
    done = apr("eval", "m", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err
    assert canned.loads == 0


def test_no_such_model(apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = apr("eval", "./nowhere.gguf")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "runs").exists()


def test_a_model_of_random_weights(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, engine included: a model that cannot program scores nothing, and resumes."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    tasks = [
        {
            "task_id": f"T/{name}",
            "prompt": f"def {name}(x):\n",
            "entry_point": name,
            "test": "def check(candidate):\n    assert candidate(1) == 2\n",
            "canonical_solution": "    return x + 1\n",
        }
        for name in "fgh"
    ]
    data = tmp_path / "tasks.jsonl"
    data.write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
    arguments = ["eval", model, "--data", data, "--limit", 2, "--max-tokens", 4, "--json"]
    arguments += ["--mode", "base"]
    done = apr(*arguments, "--dtype", "float32", "--max-concurrency", 2)
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert value["pass@1"] == 0.0
    assert 0 < value["generation"]["tokens_generated"] <= 8
    assert value["model"]["dtype"] == "float32"
    monkeypatch.setattr("apr.engine.session.Session.load", None)  # not needed any more
    again = json.loads(apr(*arguments, "--dtype", "float32", "--max-concurrency", 2).out)
    assert again == value


def test_infilling_with_a_model_of_random_weights(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs a model with the tokens for it; the baseline does not."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    plain = gguf_file(tmp_path / "plain.gguf", small_model("Llama"))
    with monkeypatch.context() as patch:
        tokens = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
        patch.setattr(models, "CONTROL", [*models.CONTROL, *tokens])
        able = gguf_file(tmp_path / "able.gguf", small_model("Llama", vocab_size=models.VOCAB + 3))
    task = {
        "task_id": "T/f",
        "prompt": "def f(x):\n",
        "suffix": "    return y\n",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        "canonical_solution": "    y = x + 1\n",
    }
    data = tmp_path / "tasks.jsonl"
    data.write_text(json.dumps(task))
    rest = ["--benchmark", "infilling-single-line", "--data", data, "--max-tokens", 4, "--json"]
    done = apr("eval", able, *rest)
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert value["settings"]["prompt"] == "fill in the middle, PSM"
    assert (value["pass@1"], value["generation"]["exact_match"]) == (0.0, 0.0)
    refused = apr("eval", plain, *rest)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "has no fill-in-the-middle tokens" in refused.err and "--mode prefix" in refused.err
    assert "PSM only" in apr("eval", able, *rest, "--mode", "spm").err
    baseline = json.loads(apr("eval", plain, *rest, "--mode", "prefix").out)
    assert baseline["settings"]["prompt"] == "left to right, without the suffix"


def test_a_prompt_longer_than_the_context_is_a_counted_empty_answer(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small model's context is 128 tokens."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    data = tmp_path / "tasks.jsonl"
    with data.open("w") as file:
        for name, words in (("first", 900), ("second", 1), ("third", 500)):
            task = {
                "task_id": f"T/{name}",
                "prompt": f'def f(x):\n    """{"x " * words}"""\n',
                "entry_point": "f",
                "test": "def check(candidate):\n    assert candidate(1) == 2\n",
                "canonical_solution": "    return x + 1\n",
            }
            file.write(f"{json.dumps(task)}\n")
    arguments = ["eval", model, "--data", data, "--max-tokens", 4, "--mode", "base"]
    arguments += ["--n-samples", 2, "--temperature", 1, "--dtype", "float32"]
    done = apr(*arguments, "--json")
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert value["generation"]["prompt_too_long"] == 4
    assert value["verdicts"] == {"failed": 6}
    rows = (Path(value["folder"]) / "samples.jsonl").read_text().splitlines()
    assert sum(json.loads(row)["completion"] == "" for row in rows) >= 4
    monkeypatch.setattr("apr.engine.session.Session.load", None)  # nothing is asked again
    again = apr(*arguments)
    assert again.code == 0, again.err
    assert "prompt too long" in again.out


def test_a_cache_that_is_too_small_names_the_task(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr.engine import session
    from apr.engine.session import Budget

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "plan_cache", lambda *_: Budget(1, 64, 1000, 2000))
    torch.manual_seed(0)
    model = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    task = {
        "task_id": "T/long",
        "prompt": "def f(x):\n" + "    x\n" * 12,
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        "canonical_solution": "    return x + 1\n",
    }
    data = tmp_path / "tasks.jsonl"
    data.write_text(json.dumps(task))
    arguments = ["--data", data, "--mode", "base", "--dtype", "float32", "--max-concurrency", 1]
    done = apr("eval", model, *arguments)
    assert (done.code, done.out) == (2, "")
    assert "apr: task T/long: " in done.err and "the cache has 1 (lower max_tokens" in done.err


def test_a_model_behind_a_server(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reply = completion("\n    return None\n")
    with FakeServer(lambda asked: reply, [{"id": "m", "owned_by": "vllm"}]).running() as server:
        arguments = ["--endpoint", server.url.removesuffix("/v1"), "--limit", 2, "--mode", "base"]
        done = apr("eval", "m", *arguments, "--json")
        assert done.code == 0, done.err
        value = json.loads(done.out)
        assert (value["pass@1"], value["model"]["endpoint"]) == (0.0, server.url)
        wrong = apr("eval", "n", *arguments)
        assert (wrong.code, wrong.out) == (2, "")
        assert wrong.err == f"apr: {server.url} has no model n (it has m)\n"
    gone = apr("eval", "m", *arguments, "--limit", 3)
    assert (gone.code, gone.out, gone.err.count("\n")) == (1, "", 1)
    assert f"cannot reach {server.url}" in gone.err
    again = apr("eval", "m", *arguments)
    assert again.code == 0, "finished runs need no server"
    secret = apr("eval", "m", "--endpoint", "http://me:secret@localhost")
    assert (secret.code, secret.err.count("\n"), "secret" in secret.err) == (2, 1, False)


def test_ctrl_c_does_not_wait_for_a_server(tmp_path: Path) -> None:
    over = threading.Event()

    def answer(asked: Asked) -> Reply:
        over.wait(60)
        return completion("x")

    with FakeServer(answer, [{"id": "m"}]).running() as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "apr", "eval", "m", "--endpoint", server.url],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 60
            while not server.asked and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
            assert not over.is_set() and process.returncode == 130
            assert "interrupted; 0 of 164 samples are stored" in said
        finally:
            over.set()
            process.kill()


def test_several_benchmarks_load_the_model_once(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr.engine.session import Session

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    assert apr("data", "pull", "mbpp", "--from", shared_data()).code == 0
    torch.manual_seed(0)
    model = gguf_file(tmp_path / "m.gguf", small_model("Llama", max_position=2048))
    loads, load = [], Session.load
    monkeypatch.setattr(Session, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    arguments = ["eval", model, "--benchmark", "humaneval,mbpp", "--limit", 1, "--max-tokens", 2]
    arguments += ["--dtype", "float32", "--mode", "base"]
    done = apr(*arguments, "--json")
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert [entry["benchmark"] for entry in value["benchmarks"]] == ["humaneval", "mbpp"]
    assert all(Path(entry["folder"], "results.json").is_file() for entry in value["benchmarks"])
    assert len(loads) == 1
    again = apr(*arguments, "--per-task", "--show-samples", 1)
    assert again.code == 0 and len(loads) == 1
    assert "HumanEval/0" in again.out and "mbpp" in again.out and "0.0 (0.0 to 0.0)" in again.out
    left = apr(*arguments[:2], "--benchmark", "all", *arguments[4:])
    assert left.code == 0, left.err
    assert "not run: mbpp+: the data of mbpp+ is not here" in left.out


def test_a_sweep(apr: Command, canned: Canned, tmp_path: Path) -> None:
    file = tmp_path / "table.yml"
    file.write_text("models: [a]\nstrategies: [standard, few-shot]\nbenchmarks: [humaneval]\n")
    done = apr("eval", "--sweep", file, "--limit", 2, "--mode", "base", "--json")
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert list(value["rows"]) == ["a, standard", "a, few-shot"]
    assert [cell["pass@1"] for cell in value["cells"]] == [0.5, 0.5]
    assert value["cells"][1]["against_first"]["p_value_holm"] == 1.0
    table = apr("eval", "--sweep", file, "--limit", 2, "--mode", "base")
    assert "few-shot" in table.out and "runs/sweep-table.json" in table.out
    assert len(canned.asked) == 4, "the second time nothing is generated"
    listed = apr("results", "--json")
    assert len(json.loads(listed.out)) == 2


def test_a_sweep_with_a_cell_that_fails(apr: Command, canned: Canned, tmp_path: Path) -> None:
    file = tmp_path / "table.yml"
    file.write_text("models: [a]\nsettings: [{seed: 1}, {mode: psm}]\n")
    done = apr("eval", "--sweep", file, "--limit", 1, "--json")
    assert done.code == 1
    assert "apr: a, mode psm, humaneval: mode psm is not for humaneval" in done.err
    good, bad = json.loads(done.out)["cells"]
    assert good["pass@1"] == 1.0 and "mode psm" in bad["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model is named"),
        (["--sweep", "none.yml"], "none.yml cannot be read"),
        (["--sweep", "table.yml"], "table.yml: key modles is unknown"),
        (["--sweep", "table.yml", "--show-prompt"], "--show-prompt"),
    ],
)
def test_bad_sweeps(
    apr: Command, canned: Canned, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "table.yml").write_text("modles: [a]\n")
    done = apr("eval", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err


def test_a_sweep_over_a_server_and_a_model(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is canned: a model of random weights, and answers over HTTP."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    task = {
        "task_id": "T/f",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        "canonical_solution": "    return x + 1\n",
    }
    data = tmp_path / "tasks.jsonl"
    data.write_text(json.dumps(task))
    reply = completion("    return x + 1\n")
    with FakeServer(lambda asked: reply, [{"id": "far"}]).running() as server:
        file = tmp_path / "table.yml"
        entries = [
            {"model": str(model), "name": "near", "max_tokens": 4},
            {"model": "far", "endpoint": server.url},
        ]
        file.write_text(json.dumps({"models": entries}))  # JSON is YAML
        done = apr("eval", "--sweep", file, "--data", data, "--mode", "base", "--json")
    assert done.code == 0, done.err
    near, far = json.loads(done.out)["cells"]
    assert (near["pass@1"], far["pass@1"]) == (0.0, 1.0)
    assert far["against_first"]["fixed"] == ["T/f"]


def test_a_file_of_tasks(apr: Command, canned: Canned, tmp_path: Path) -> None:
    """Named like a benchmark; what is wrong with it is told in one line, before a model loads."""
    row = {
        "task_id": "T/0",
        "prompt": "def f(x):\n",
        "test": "assert f(1) == 2",
        "canonical_solution": "    return x + 1\n",
    }
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps(row))
    done = apr("eval", "m", "--benchmark", data, "--json")
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert (value["benchmark"], value["pass@1"]) == ("mine.jsonl", 1.0)
    assert value["folder"].startswith("runs/mine.jsonl-canned-")
    shown = apr("results", value["folder"], "--task", "T/0")
    assert shown.code == 0 and "return x + 1" in shown.out
    assert json.loads(apr("score", "--check-gt", "--benchmark", data, "--json").out)["passed"] == 1
    data.write_text(json.dumps({**row, "tests": []}))
    (tmp_path / "broken.py").write_text("def benchmark():\n    return 1 / 0\n")
    for benchmark, message in (
        (data, f"{data} line 1: field 'tests' is unknown (test?)"),
        ("broken.py", "broken.py line 2: benchmark() raised ZeroDivisionError: division by zero"),
        ("gone.jsonl", "--benchmark gone.jsonl: no such file"),
    ):
        refused = apr("eval", "m", "--benchmark", benchmark)
        assert (refused.code, refused.out, refused.err) == (2, "", f"apr: {message}\n")
    assert canned.loads == 1


def test_what_never_began_leaves_no_run(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong flag or a server that is not there is no run that could go on."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    for arguments, code in (
        ((model, "--dtype", "int3"), 2),
        (("m", "--endpoint", "http://localhost:1"), 1),
    ):
        done = apr("eval", *arguments, "--limit", 1)
        assert (done.code, done.err.count("\n")) == (code, 1)
    assert list((tmp_path / "runs").iterdir()) == []
    assert apr("results").out == "no runs\n"
