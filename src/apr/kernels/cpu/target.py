"""What the machine that numba compiles for can do. Chosen by feature test, never by name.

numba's own settings are honoured: `NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma` compiles,
caches and selects kernels for that machine, which is how the portable path is tested.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from numba.core import config


def target_features() -> frozenset[str]:
    """LLVM names of the features that compiled code may use, e.g. {"avx2", "avx512bf16"}."""
    name, features = getattr(config, "CPU_NAME", None), getattr(config, "CPU_FEATURES", None)
    if name is not None or features is not None:
        listed = (features or "").split(",")
        return frozenset(item[1:] for item in listed if item.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


HAS_BF16_DOT = {"avx512bf16", "avx512f"} <= target_features()

# Micro-kernel shape: accumulators must fit the registers. With 32 512-bit registers, 6 rows by
# 4 vectors; without, vectors of 16 lanes are split by LLVM and 4 of them still fit.
MAX_ROWS = 6 if HAS_BF16_DOT else 4


def vectors_for(rows: int) -> int:
    """Vectors of 16 columns that a micro-kernel of `rows` rows covers: 1, 2 or 4.

    As many as registers hold, so that enough sums are under way to hide each one's latency.
    """
    if HAS_BF16_DOT:
        return 4
    return {1: 4, 2: 2}.get(rows, 1)
