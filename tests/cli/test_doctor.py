"""`apr doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import torch

from .command import Command


@pytest.fixture
def apr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def test_json(apr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "not" / "made" / "yet"))
    done = apr("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    levels = report["sandbox"]["levels"]
    assert [level["level"] for level in levels] == ["full", "confined", "limits"]
    for level in levels:
        assert level["available"] != bool(level["reason"])
    strongest = [level["level"] for level in levels if level["available"]]
    assert report["sandbox"]["level"] == (strongest[0] if strongest else None)
    assert report["torch"]["version"] == torch.__version__
    cuda = [d for d in report["torch"]["devices"] if d["device"].startswith("cuda")]
    assert len(cuda) == torch.cuda.device_count()
    assert report["memory"]["total"] == psutil.virtual_memory().total
    assert report["cache"]["path"] == str(tmp_path / "not" / "made" / "yet")
    assert not (tmp_path / "not").exists()


def test_features_are_the_processors(apr: Command) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or " avx2" not in cpuinfo.read_text():
        pytest.skip("needs an x86-64 processor that Linux says has AVX2")
    report = json.loads(apr("doctor", "--json").out)
    flags = set(cpuinfo.read_text().split("flags", 1)[1].splitlines()[0].split())
    named = {"avx2", "fma", "avx512f", "f16c"}
    assert named & set(report["cpu"]["features"]) == named & flags


def test_lines(apr: Command) -> None:
    done = apr("doctor")
    assert (done.code, done.err) == (0, "")
    for word in ("sandbox full", "sandbox confined", "sandbox limits", "torch", "memory", "cache"):
        assert word in done.out
