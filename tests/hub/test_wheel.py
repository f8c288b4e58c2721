"""Wheels that try to write outside, or are none."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from apr.common.errors import AprError
from apr.hub import resolve
from apr.hub.wheel import WheelFile

from .conftest import Index
from .wheels import make_wheel


@pytest.mark.parametrize(
    "member",
    ["../outside.gguf", "/outside.gguf", "m/../../outside.gguf", "m\\..\\o.gguf", "C:/o.gguf"],
)
def test_path_traversal_is_refused(index: Index, cache: Path, member: str) -> None:
    index.add("bad-model", "1.0", {member: b"GGUF"})
    with pytest.raises(AprError, match=r"is refused: its member .* leave the target folder"):
        resolve("pypi://bad-model", progress=False)
    assert not list(cache.parent.rglob("o*.gguf"))


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    filename, content = make_wheel("bad-model", "1.0", {})
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("m/link.gguf")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    path = tmp_path / filename
    path.write_bytes(buffer.getvalue())
    with pytest.raises(AprError, match=r"m/link\.gguf"):
        WheelFile(path)


def test_not_a_wheel(tmp_path: Path) -> None:
    path = tmp_path / "x-1.0-py3-none-any.whl"
    path.write_bytes(b"<html>")
    with pytest.raises(AprError, match="is not a wheel"):
        WheelFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/w.gguf", b"GGUF")
    with pytest.raises(AprError, match="no RECORD"):
        WheelFile(path)


def test_damaged_member(tmp_path: Path) -> None:
    filename, content = make_wheel("m", "1.0", {})
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("m/w.gguf", b"GGUF" + b"w" * 100)
    damaged = buffer.getvalue().replace(b"w" * 100, b"w" * 99 + b"v")
    path = tmp_path / filename
    path.write_bytes(damaged)
    with WheelFile(path) as wheel, pytest.raises(AprError, match=r"m/w\.gguf is damaged"):
        list(wheel.blocks("m/w.gguf"))


def test_requirements(tmp_path: Path) -> None:
    filename, content = make_wheel("m", "1.0", {}, ["m-part1==1.0", "x>=2; extra == 'y'", "???"])
    path = tmp_path / filename
    path.write_bytes(content)
    with WheelFile(path) as wheel:
        assert [str(r) for r in wheel.requirements()] == ["m-part1==1.0", 'x>=2; extra == "y"']
