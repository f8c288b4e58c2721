"""Compiled now or loaded from the cache: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import hashlib
import numpy as np
from model.test_compiled_runner import CONFIGS, batch, random_model, runner_of, tokens_of

found = hashlib.sha256()
for config in CONFIGS.values():
    runner = runner_of(random_model(config))
    tokens = tokens_of(config, 130)
    logits = runner.forward(batch([(tokens, 0, [1, 2, 3])]))
    found.update(np.ascontiguousarray(logits.numpy()).tobytes())
    runner.close()
print(found.hexdigest())
"""


@pytest.mark.slow
def test_fresh_and_cached_code_give_the_same_bits(tmp_path: Path) -> None:
    """In the process that compiles there are several copies of what `step` calls, each optimised
    on its own; from the cache comes one. So what may sum in another order has to be inlined.
    """
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    found = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1] != ""
