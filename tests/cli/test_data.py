"""`apr data`."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from apr.hub.data_registry import DataFile, DataSet

from .command import Command

TEXT = b'{"task_id": "a"}\n'


@pytest.fixture
def apr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    file = DataFile("a.jsonl", "https://a.example/a.jsonl", hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setattr(
        "apr.hub.data_registry.DATASETS",
        (DataSet("mine", "v1", (file,), 1, "MIT", "made up"),),
    )
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT))
    return Command(monkeypatch, capfd)


def test_pull_prints_path_and_licence(apr: Command, tmp_path: Path) -> None:
    done = apr("data", "pull", "mine", "--from", tmp_path)
    assert (done.code, done.err) == (0, "")
    path, rows, licence = done.out.splitlines()
    assert Path(path).read_bytes() == TEXT
    assert (rows, licence) == ("mine@v1, 1 rows", "licence: MIT")
    assert "already in the cache" in apr("data", "pull", "mine@v1").out


def test_json(apr: Command, tmp_path: Path) -> None:
    listed = json.loads(apr("data", "list", "--json").out)["data"]
    assert [(d["name"], d["licence"], d["rows"], d["paths"]) for d in listed] == [
        ("mine@v1", "MIT", 1, None)
    ]
    pulled = json.loads(apr("data", "pull", "mine", "--from", tmp_path, "--json").out)
    assert pulled["from_cache"] is False and Path(pulled["paths"][0]).read_bytes() == TEXT
    assert json.loads(apr("data", "list", "--json").out)["data"][0]["paths"] == pulled["paths"]


def test_a_group_is_several(apr: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = [
        DataFile(
            f"{name}.jsonl", f"https://a.example/{name}.jsonl", hashlib.sha256(TEXT).hexdigest()
        )
        for name in "bc"
    ]
    sets = [DataSet(f.name[0], "", (f,), 1, "MIT", "made up") for f in files]
    monkeypatch.setattr("apr.hub.data_registry.DATASETS", tuple(sets))
    monkeypatch.setattr("apr.eval.benchmarks.GROUPS", {"both": ("b", "c")})
    done = apr("data", "pull", "both", "--from", tmp_path / "a.jsonl.gz")
    assert done.code == 0 and [f"{name}, 1 rows" in done.out for name in "bc"] == [True, True]
    again = json.loads(apr("data", "pull", "both", "--json").out)["data"]
    assert [(row["name"], row["from_cache"]) for row in again] == [("b", True), ("c", True)]


def test_list(apr: Command, tmp_path: Path) -> None:
    assert "mine@v1" in apr("data", "list").out and "yes" not in apr("data", "list").out
    apr("data", "pull", "mine", "--from", tmp_path)
    assert "yes" in apr("data", "list").out


def test_one_line_errors(apr: Command, tmp_path: Path) -> None:
    unknown = apr("data", "pull", "other")
    assert unknown.code == 2 and "(one of mine@v1)" in unknown.err
    assert "(mine@v1? one of mine@v1)" in apr("data", "pull", "mine@v2").err
    (tmp_path / "a.jsonl.gz").write_bytes(b"something else")
    wrong = apr("data", "pull", "mine", "--from", tmp_path)
    assert wrong.code == 1 and "another checksum" in wrong.err and wrong.err.count("\n") == 1
