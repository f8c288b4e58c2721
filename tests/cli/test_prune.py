"""`apr prune`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prune.conftest import small, text

from .command import Command

__all__ = ["small", "text"]
Small = Callable[[str], Path]


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def how(text: Path) -> tuple[object, ...]:
    return ("--calibration", text, "--sequences", 6, "--sequence-length", 32, "--dtype", "float32")


def test_table_json_and_verification(
    apr: Command, small: Small, how: tuple[object, ...], text: Path, tmp_path: Path
) -> None:
    arguments = ("prune", small("Llama"), "--pattern", "2:4", *how)
    table = apr(*arguments, "-o", tmp_path / "a")
    assert table.code == 0 and "50.00 % as 2:4" in table.out
    assert "the file is no smaller" in " ".join(table.out.split())
    done = apr(*arguments, "-o", tmp_path / "b", "--verify", "--verify-text", text, "--json")
    value = json.loads(done.out)
    assert (done.code, value["sparsity"], value["method"]) == (0, 0.5, "wanda")
    (row,) = value["perplexity"]
    assert row["change"] == pytest.approx(row["after"] / row["before"] - 1)
    assert value["speed"] == []  # nothing to time in a model this small
    again = apr("eval", tmp_path / "b", "--perplexity", text, "--window", 128, "--json")
    assert json.loads(again.out)["perplexity"] == pytest.approx(row["after"], rel=1e-6)


def test_smaller_models_say_how_small(
    apr: Command, small: Small, how: tuple[object, ...], tmp_path: Path
) -> None:
    arguments = ("prune", small("Llama"), "--method", "depth", "--sparsity", 0.3, *how)
    plan = apr(*arguments, "--plan")
    expected = "leaves 2 layers of hidden size 48, 4 heads (2 KV heads) and 80 channels"
    assert expected in plan.out
    done = apr(*arguments, "-o", tmp_path / "out")
    assert done.code == 0 and "layers gone" in done.out and "zeros are stored" not in done.out


def test_analysis_writes_nothing(
    apr: Command, small: Small, how: tuple[object, ...], tmp_path: Path
) -> None:
    done = apr("prune", small("Llama"), "--sparsity", 0.5, *how, "--analyze", "--json")
    rows = json.loads(done.out)["layer_table"]
    assert done.code == 0 and [row["layer"] for row in rows] == [0, 1, 2]
    assert all(0 < row["error"] < 1 and row["influence"] > 0 for row in rows)
    assert sum(row["owl_sparsity"] for row in rows) / 3 == pytest.approx(0.5)
    table = apr("prune", small("Llama"), "--sparsity", 0.5, *how, "--analyze")
    assert table.code == 0 and "█" in table.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sparsity", 1.5], "--sparsity is 1.5 (it must be above 0, below 1)"),
        (["--sparsity", 0], "--sparsity is 0"),
        ([], "nothing says how much to prune"),
        (["--pattern", "3:7"], "--pattern 3:7 does not divide the rows of model.layers.0."),
        (["--pattern", "2/4"], "--pattern 2/4 is no N:M"),
        (["--sparsity", 0.5, "--method", "best"], "--method best is unknown"),
        (["--sparsity", 0.5, "--sequence-length", 100000], "--sequence-length 100000"),
        (["--sparsity", 0.5, "--sequence-length", 32, "--calibration", "x.txt"], "x.txt: no such"),
        (
            ["--sparsity", 0.5, "--sequence-length", 32, "--method", "depth", "--analyze"],
            "--analyze has no meaning with",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    apr: Command, small: Small, tmp_path: Path, flags: list[object], message: str
) -> None:
    done = apr("prune", small("Llama"), *flags, "-o", tmp_path / "out")
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_folder_to_write(apr: Command, small: Small) -> None:
    done = apr("prune", small("Llama"), "--sparsity", 0.5)
    assert done.code == 2 and "no folder to write" in done.err
