"""Real GGUF files, where they are: in the folder APR_TEST_MODELS names or in apr's cache."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest

from apr.common.errors import AprError


def _real_gguf(file_name: str, short_name: str) -> Path:
    path = Path(os.environ.get("APR_TEST_MODELS", "")) / file_name
    if path.is_file():
        return path
    hub = pytest.importorskip("apr.hub")
    if not hasattr(hub, "resolve"):
        pytest.skip(f"{file_name} is not in APR_TEST_MODELS")
    try:
        return hub.resolve(short_name, offline=True)
    except AprError as error:
        pytest.skip(f"{short_name} is neither in APR_TEST_MODELS nor in the cache ({error})")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _real_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_reader(smollm2_path: Path) -> gguf.GGUFReader:
    """Opening it takes the gguf package seconds, so once."""
    return gguf.GGUFReader(smollm2_path)


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    return _real_gguf("gemma3.gguf", "gemma3-270m")
