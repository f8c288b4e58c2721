"""`apr import`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.models import gguf_file, small_model

from .command import Command


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return gguf_file(tmp_path / "m.gguf", small_model("Llama"))


def test_writes_a_folder(apr: Command, model: Path, tmp_path: Path) -> None:
    done = apr("import", model, "-o", tmp_path / "out", "--dtype", "bf16")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == str(tmp_path / "out")
    assert "llama" in done.out and "bf16" in done.out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_json(apr: Command, model: Path, tmp_path: Path) -> None:
    done = apr("import", model, "-o", tmp_path / "out", "--json")
    value = json.loads(done.out)
    assert value["folder"] == str(tmp_path / "out")
    assert (value["family"], value["dtype"], value["notes"]) == ("llama", "fp32", [])
    assert value["nbytes"] == 4 * value["parameters"]


def test_force(apr: Command, model: Path, tmp_path: Path) -> None:
    assert apr("import", model, "-o", tmp_path / "out").code == 0
    again = apr("import", model, "-o", tmp_path / "out")
    assert (again.code, again.out, again.err.count("\n")) == (2, "", 1)
    assert "--force to replace it" in again.err
    assert apr("import", model, "-o", tmp_path / "out", "--force").code == 0


def test_errors_are_one_line(apr: Command, model: Path, tmp_path: Path) -> None:
    done = apr("import", model, "-o", tmp_path / "out", "--dtype", "int3")
    assert (done.code, done.err.count("\n")) == (2, 1)
    model.write_bytes(model.read_bytes()[:5000])
    done = apr("import", model, "-o", tmp_path / "out")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "m.gguf" in done.err
    assert not (tmp_path / "out").exists()
