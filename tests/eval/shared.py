"""Completions with recorded verdicts, which lie beside the repository on a full checkout."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

QWEN = "humaneval_qwen2.5-coder-1.5b-base"
STARCODER = "humaneval_starcoder2-15b-instruct-v0.1"


def completions(name: str) -> Path:
    """A file of completions; skips the test where it is not there."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("APR_SHARED_DATA", beside)) / "completions"
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: set APR_SHARED_DATA")
    return path


def samples(name: str) -> list[dict[str, Any]]:
    with gzip.open(completions(f"{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def published() -> dict[str, Any]:
    return json.loads(completions("published.json").read_text())
