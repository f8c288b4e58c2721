"""Texts to measure on: files of several kinds, WikiText-2, the built-in sample."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from apr.calibrate.texts import join_wikitext, load_text
from apr.common.errors import UsageError
from apr.hub.data_files import pull_data
from apr.hub.data_registry import DataFile, DataSet, find_dataset
from hub.server import running_server, sha256

from .shared import shared_data

# Of the joined rows of wikitext-2-raw-v1's test split. GPT-2's tokenizer makes 287 644 tokens of
# this text, as transformers' guide to perplexity reports for it.
JOINED = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"


def test_wikitext_is_joined_as_in_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = shared_data("wikitext-2/wiki.test.raw.gz")
    assert load_text("wikitext-2", raw).sha256 == JOINED
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="apr data pull wikitext-2"):
        load_text("wikitext-2")
    pull_data(find_dataset("wikitext-2"), raw, progress=False)
    assert load_text("wikitext-2").sha256 == JOINED


def test_rows_are_lines_with_their_ends_and_blank_lines_empty() -> None:
    assert join_wikitext(" \n = A = \n \n b \n") == "\n\n = A = \n\n\n\n\n b \n"


def test_a_file_in_a_zip_archive_is_kept_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("w/other.raw", "no")
        out.writestr("w/mine.raw", "= A =\n" * 99)
    packed = archive.getvalue()
    (tmp_path / "w.zip").write_bytes(packed)
    with running_server() as server:
        server.add("/w.zip", packed)
        text = ("= A =\n" * 99).encode()
        file = DataFile("mine.raw.gz", f"{server.url}/w.zip", sha256(packed), sha256(text))
        dataset = DataSet("mine", "", (file,), 99, "MIT", "made up")
        for source in (None, tmp_path / "w.zip"):
            (path,) = pull_data(dataset, source, progress=False).paths
            assert gzip.decompress(path.read_bytes()) == text
            assert pull_data(dataset, progress=False).from_cache
            path.unlink()
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_the_builtin_sample_is_python_and_stays_the_same() -> None:
    found = load_text("builtin")
    ast.parse(found.text)
    # Perplexities on it are compared over versions of apr: change it under another name.
    assert found.sha256 == "cd5668921f0d9ae5fe3470cc3b878da782a87ea9de85170eaff3dec2d01acd24"


@pytest.mark.parametrize("packed", [False, True])
def test_files(tmp_path: Path, packed: bool) -> None:
    def write(name: str, content: str) -> str:
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        return str(path)

    plain = "a\r\nbé\n\n"
    found = load_text(write("a.txt", plain))
    assert (found.text, found.sha256) == (plain, hashlib.sha256(plain.encode()).hexdigest())
    rows = [{"text": "a"}, {"content": "b\n"}, {"text": "c", "content": "no"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert load_text(write("r.jsonl", lines)).text == "a\n\nb\n\n\nc"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("none.jsonl", None, "no such file"),
        ("bad.txt", b"\xff\xfe", "not UTF-8"),
        ("cut.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "not a whole gzip file"),
        ("plain.raw.gz", b"text", "not a whole gzip file"),
        ("r.jsonl", b'{"text": 1}\n', "line 1 has no string"),
        ("r.jsonl", b'{"text": "a"}\n{"prompt": "b"}\n', "line 2 has no string"),
        ("r.jsonl", b'{"text": "\\ud800"}\n', "line 1 holds half a surrogate pair"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_text(str(path))


def test_a_folder_and_data_for_another_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_text(str(tmp_path))
    with pytest.raises(UsageError, match="--data names the file of --perplexity wikitext-2"):
        load_text("builtin", tmp_path / "x")
