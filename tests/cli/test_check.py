"""`apr check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from convert.models import gguf_file, small_model
from hub.conftest import Index
from hub.server import running_server

from .command import Command


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def test_sound(apr: Command, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    done = apr("check", path, "--forward")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == str(path)
    assert "checked  forward pass" in done.out
    value = json.loads(apr("check", path, "--json").out)
    assert (value["passed"], value["problems"]) == (True, [])


def test_problems_exit_with_1(apr: Command, tmp_path: Path) -> None:
    model = small_model("Llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    path = gguf_file(tmp_path / "m.gguf", model)
    done = apr("check", path)
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("PROBLEM")]
    assert "blk.0.ffn_up.weight: 1 NaN" in line
    done = apr("check", path, "--json")
    assert done.code == 1
    assert json.loads(done.out)["passed"] is False


def test_a_file_damaged_since_it_was_pulled(
    apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf_file(tmp_path / "m.gguf", small_model("Llama")).read_bytes()
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with running_server() as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        Index(server).add("tiny-model", "1.0", {"m/m.gguf": model})
        assert apr("check", "pypi://tiny-model").code == 0
        path = Path(apr("pull", "pypi://tiny-model").out.splitlines()[0])
        path.write_bytes(model[:-4] + bytes(4))  # the last weight is 0 now: all else is sound
        done = apr("check", "pypi://tiny-model")
        assert done.code == 1
        (line,) = [line for line in done.out.splitlines() if line.startswith("PROBLEM")]
        assert f"{path} has sha256 " in line
        assert apr("pull", "pypi://tiny-model", "--refresh").code == 0
        assert apr("check", "pypi://tiny-model").code == 0


def test_nothing_to_check(apr: Command) -> None:
    done = apr("check", "./nowhere")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
