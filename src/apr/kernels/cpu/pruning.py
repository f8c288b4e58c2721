"""The arithmetic of pruning: X^T X of bf16 rows in fp32, the squares of rows, and SparseGPT's
elimination row by row, with the weights of a row in the processor's cache.

torch's bf16 product rounds its result to bf16, and its fp32 product does not use the bf16 dot
instruction; the Gram matrix here is the micro-kernel of the forward pass on X^T, for the upper
triangle only.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray, cfunc, njit

from apr.kernels.cpu.elementwise import FAST
from apr.kernels.cpu.matmul import linear
from apr.kernels.cpu.microkernel import PANEL
from apr.kernels.cpu.packing import aligned_zeros, pack_panels
from apr.kernels.cpu.panels import dense_panels
from apr.kernels.cpu.parallel import BODY, WORDS, floats_at, next_chunk, run_chunks
from apr.kernels.cpu.threads import Team
from apr.kernels.cpu.training import BF16, FP32, number, numbers_at

COLUMNS = 64  # whose squares are summed at a time
STRIP = 4  # panels computed at a time; what lies below the diagonal of a strip is computed as well


def add_upper_gram(x: torch.Tensor, total: torch.Tensor, team: Team) -> None:
    """total += x^T x, on and above the diagonal at least.

    x: bf16 (rows, C), contiguous. total: fp32 (C, C), changed in place.
    """
    rows, size = x.shape
    depth = -(-rows // PANEL) * PANEL
    turned = torch.zeros(size, depth, dtype=torch.bfloat16)
    turned[:, :rows] = x.t()
    panels = dense_panels(pack_panels(turned))
    scratch = aligned_zeros((size, STRIP * PANEL), np.float32)
    result = torch.from_numpy(scratch)
    for first in range(0, len(panels.table), STRIP):
        count = min(STRIP, len(panels.table) - first)
        left, right = first * PANEL, min((first + count) * PANEL, size)
        team.run(
            linear, turned.data_ptr(), 2 * depth, right, panels.table, first, count,
            scratch.ctypes.data, scratch.strides[0], 0,
            keep=(turned, panels, scratch),
        )  # fmt: skip
        total[:right, left:right] += result[:right, : right - left]


def add_squares(x: torch.Tensor, total: torch.Tensor) -> None:
    """total += the sum of x * x over rows. x: bf16 or fp32 (rows, C), contiguous. total: fp32 (C,).

    The same at any number of threads.
    """
    rows, size = x.shape
    body = squares if x.dtype == torch.bfloat16 else squares_fp32
    run_chunks(body, -(-size // COLUMNS), x, total, rows, size)


@njit(nogil=True, cache=True, fastmath=FAST)
def _squares(a, kind):
    """x, totals (fp32), rows, columns."""
    rows, size = a[4], a[5]
    x, totals = numbers_at(a[2], rows * size, kind), floats_at(a[3], size)
    while True:
        chunk = next_chunk(a)
        if chunk >= a[1]:
            break
        first, last = chunk * COLUMNS, min(size, (chunk + 1) * COLUMNS)
        total = totals[first:last]
        for r in range(rows):
            row = x[r * size + first : r * size + last]
            for i in range(total.shape[0]):
                value = number(row[i])
                total[i] += value * value


@cfunc(BODY, cache=True)
def squares(pointer):
    _squares(carray(pointer, (WORDS,)), BF16)


@cfunc(BODY, cache=True)
def squares_fp32(pointer):
    _squares(carray(pointer, (WORDS,)), FP32)


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def eliminate_rows(tid, threads, weight, mask, factor, errors, group, zeros):
    """This thread's rows of `apr.prune.surgeon.eliminate`; group is 0 without a pattern.

    weight, errors: fp32 (rows, columns). mask: bool (rows, columns). factor: fp32 (columns,
    columns).
    """
    rows, columns = weight.shape
    for r in range(tid * rows // threads, (tid + 1) * rows // threads):
        w, chosen = weight[r], mask[r]
        for i in range(columns):
            if group > 0 and i % group == 0:
                _choose(w[i : i + group], chosen[i : i + group], factor, i, zeros)
            if not chosen[i]:
                errors[r, i] = 0.0
                continue
            error = w[i] / factor[i, i]
            errors[r, i] = error
            w[i] = 0.0
            row = factor[i]
            for j in range(i + 1, columns):
                w[j] -= error * row[j]


@njit(nogil=True, cache=True)
def _choose(w, chosen, factor, first, zeros):
    """Mark the `zeros` weights of a group that cost least; of equal ones the first."""
    for _ in range(zeros):
        best = -1
        least = w[0] * 0
        for j in range(w.shape[0]):
            if chosen[j]:
                continue
            ratio = w[j] / factor[first + j, first + j]
            cost = ratio * ratio
            if best < 0 or cost < least:
                best, least = j, cost
        chosen[best] = True
