"""The kernels for processors without a bf16 dot product, compiled and run as a Haswell would."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for AVX2")
def test_kernels_and_runner_without_avx512(tmp_path: Path) -> None:
    """The same tests, with numba told to compile for AVX2 into a cache of its own."""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+sse4.2",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    probe = "from apr.kernels.cpu import target; print(target.HAS_BF16_DOT, target.MAX_ROWS)"
    said = subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["False", "4"]
    files = [
        TESTS / "kernels" / "test_matmul.py",
        TESTS / "kernels" / "test_attention.py",
        TESTS / "model" / "test_compiled_runner.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
