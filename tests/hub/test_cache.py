"""Manifests: written, read, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr.common.errors import AprError
from apr.common.record import record_files
from apr.hub.cache import (
    FileRecord,
    Manifest,
    damaged_files,
    missing_files,
    read_manifest,
    write_manifest,
)


def make(tmp_path: Path) -> Manifest:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"abc")
    records = record_files(tmp_path / "files", [tmp_path / "files" / "a"])
    return Manifest("pypi://x==1", tmp_path / "files", "a", records, {"index": "somewhere"})


def test_checksum_is_sha256(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1: SHA-256 of "abc"."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert make(tmp_path).files == (FileRecord("a", 3, expected),)


def test_round_trip_survives_a_move(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    manifest = make(tmp_path / "one")
    write_manifest(tmp_path / "one" / "manifest.json", manifest)
    assert read_manifest(tmp_path / "one" / "manifest.json") == manifest
    (tmp_path / "one").rename(tmp_path / "two")
    moved = read_manifest(tmp_path / "two" / "manifest.json")
    assert moved is not None
    assert moved.model_path.read_bytes() == b"abc"
    assert not list((tmp_path / "two").glob(".*"))


def test_absent(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "manifest.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "null"])
def test_not_a_manifest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(AprError, match=r"is not a manifest .*delete it"):
        read_manifest(path)


def test_from_the_future(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"format": 2}')
    with pytest.raises(AprError, match="has format 2"):
        read_manifest(path)


def test_problems(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    file = tmp_path / "files" / "a"
    assert missing_files(manifest) == [] == list(damaged_files(manifest))
    file.write_bytes(b"abd")
    assert missing_files(manifest) == []
    assert "has sha256" in next(damaged_files(manifest))
    file.write_bytes(b"abcd")
    assert "has 4 bytes, expected 3" in missing_files(manifest)[0]
    file.unlink()
    assert "is missing" in missing_files(manifest)[0]
    assert "cannot be read" in next(damaged_files(manifest))
