"""`apr inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.models import gguf_file, small_model

from .command import Command


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def test_lines_and_json(apr: Command, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Qwen2"))
    done = apr("inspect", path)
    assert (done.code, done.err) == (0, "")
    assert "qwen2 (gguf)" in done.out
    assert "chat template yes" in done.out
    assert "blk.0" not in done.out
    assert "blk.0.attn_q.weight" in apr("inspect", path, "--tensors").out
    value = json.loads(apr("inspect", path, "--json").out)
    assert value["config"]["family"] == "qwen2"
    assert value["bits_per_weight"] == 32
    assert value["file_bytes"] == path.stat().st_size
    assert "tensors" not in value
    listed = json.loads(apr("inspect", path, "--json", "--tensors").out)["tensors"]
    assert {"name": "output_norm.weight", "shape": [48], "dtype": "F32", "nbytes": 192} in listed


def test_errors_are_one_line(apr: Command, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not a model")
    done = apr("inspect", tmp_path / "m.gguf")
    assert done.code in (1, 2)
    assert (done.out, done.err.count("\n")) == ("", 1)
    assert "m.gguf" in done.err
