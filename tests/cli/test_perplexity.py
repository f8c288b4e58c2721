"""`apr eval MODEL --perplexity TEXT`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apr.calibrate.perplexity import load_model, measure
from apr.calibrate.texts import load_text
from convert.models import folder, small_model

from .command import Command


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("models") / "m", small_model("Llama"))


HOW = ("--perplexity", "builtin", "--window", 64, "--max-windows", 2, "--dtype", "float32")


def test_table_json_and_gate(apr: Command, small: Path) -> None:
    want = measure(load_model(str(small), "fp32"), load_text("builtin").text, window=64)
    done = apr("eval", small, *HOW[:4], "--dtype", "float32", "--json")
    value = json.loads(done.out)
    assert (done.code, value["passed"]) == (0, None)
    assert value["perplexity"] == pytest.approx(want.perplexity)
    table = apr("eval", small, *HOW, "--threshold", 1e9)
    assert table.code == 0 and "bits per byte" in table.out and "2 of 64 tokens" in table.out
    failed = apr("eval", small, *HOW, "--threshold", 2)
    assert failed.code == 1 and "above --threshold 2" in failed.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--perplexity", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--perplexity", "builtin", "--window", 1], "--window is 1"),
        (["--perplexity", "builtin", "--limit", 3], "--limit has no meaning with --perplexity"),
        (["--window", 64], "--window has no meaning on a benchmark"),
    ],
)
def test_bad_flags_are_one_line(
    apr: Command, small: Path, flags: list[object], message: str
) -> None:
    done = apr("eval", small, *flags)
    assert done.code == 2
    assert message in " ".join(done.err.split()) and "Traceback" not in done.err
