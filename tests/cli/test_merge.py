"""`apr merge`, `apr merge-report` and `apr export --extract-lora`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merge.tiny_models import tiny_weights, write_models

from .command import Command


@pytest.fixture
def apr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    folder = tmp_path / "models"
    write_models(folder, tiny_weights())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    return Command(monkeypatch, capfd)


def test_merges_and_says_where(apr: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = apr("merge", "a", "b", "--strategy", "ties", "--base-model", "base", "--density", "0.2",
               "--weights", "0.7,0.3", "--lambda", "1.0", "-o", out)  # fmt: skip
    assert (done.code, done.out) == (0, f"{out}\n")
    assert done.err.startswith("ties of base, a, b\n") and "peak memory about" in done.err
    assert (out / "model.safetensors").is_file()


def test_json(apr: Command, tmp_path: Path) -> None:
    done = apr("merge", "a", "b", "--strategy", "slerp", "-o", tmp_path / "out", "--json")
    value = json.loads(done.out)
    assert value["method"] == "slerp" and value["tensors"] == 30 and value["seconds"] > 0


def test_a_plan_writes_nothing(apr: Command, tmp_path: Path) -> None:
    done = apr("merge", "a", "b", "--strategy", "linear", "--plan")
    assert done.code == 0 and done.out.startswith("linear of a, b\n30 tensors")
    value = json.loads(apr("merge", "a", "b", "--strategy", "linear", "--plan", "--json").out)
    assert value["output_bytes"] == 4 * value["parameters"]
    assert value["read_bytes"] == 2 * value["output_bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) in (["models"], ["cache", "models"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "no --strategy"),
        (["a", "b", "--strategy", "linear"], "no folder to write"),
        (["a", "b", "--strategy", "ties", "--plan"], "ties needs a base model"),
        (["a", "none", "--strategy", "linear", "--plan"], "none"),
        (["m.yml", "--plan"], "m.yml cannot be read"),
    ],
)
def test_errors_are_one_line(apr: Command, arguments: list[str], message: str) -> None:
    done = apr("merge", *arguments)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("apr: ") and message in done.err and done.err.count("\n") == 1


def test_the_report(apr: Command, tmp_path: Path) -> None:
    apr("merge", "a", "b", "--strategy", "ties", "--base-model", "base", "-o", tmp_path / "out")
    done = apr("merge-report", "a", "b", "--base", "base", "--merged", tmp_path / "out")
    assert done.code == 0 and "layer 2" in done.out and "conflicting signs" in done.out
    value = json.loads(apr("merge-report", "a", "b", "--base", "base", "--json").out)
    assert value["models"] == ["a", "b"] and value["groups"][-1]["name"] == "all"


def test_extraction(apr: Command, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    done = apr("export", "a", "--extract-lora", "--base-model", "base", "--rank", "2", "-o", out)
    assert done.code == 0 and done.out.startswith(f"{out}\nrank 2: ")
    assert "not in the adapter" in done.out
    merged = apr("merge", f"base+{out}", "b", "--strategy", "linear", "-o", tmp_path / "merged")
    assert merged.code == 0
    refused = apr("export", "a", "--extract-lora", "-o", tmp_path / "other")
    assert refused.code == 2 and "--base-model" in refused.err


def test_the_check(apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown of it; the check itself is tested on real models."""
    rows = [{"model": "out", "perplexity": 12.5}, {"model": "a", "perplexity": None}]
    asked = []

    def smoke_test(folder: Path, inputs: list[str]) -> dict[str, object]:
        asked.append((folder, inputs))
        return {"perplexity": rows, "tasks": 20, "passed": 3, "verdict": "broken"}

    monkeypatch.setattr("apr.eval.run.smoke.smoke_test", smoke_test)
    done = apr("merge", "a", "b", "--strategy", "linear", "-o", tmp_path / "out", "--check")
    assert asked == [(tmp_path / "out", ["a", "b"])]
    assert "12.500  out" in done.out and "not finite  a" in done.out
    assert "3 passed" in done.out and "broken" in done.out and done.code == 0
