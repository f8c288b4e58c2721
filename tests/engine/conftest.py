"""A small random chat model as a session, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr.engine.session import Session
from apr.model.opened import open_model
from convert.models import gguf_file, small_model


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model("Llama", max_position_embeddings=256)
    return gguf_file(tmp_path_factory.mktemp("small") / "m.gguf", model)


@pytest.fixture(scope="session")
def session(small_gguf: Path) -> Session:
    return Session.load(open_model(str(small_gguf)), max_concurrency=8)
