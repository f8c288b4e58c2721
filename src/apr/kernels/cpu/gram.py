"""X^T X of bf16 rows, summed in fp32: the matrix statistics of calibration need.

torch's bf16 product rounds its result to bf16, and its fp32 product does not use the bf16 dot
instruction; this is the micro-kernel of the forward pass on X^T, for the upper triangle only.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from apr.kernels.cpu.elementwise import FAST
from apr.kernels.cpu.intrinsics import from_bf16
from apr.kernels.cpu.matmul import PAIR_BYTES, linear
from apr.kernels.cpu.microkernel import PANEL
from apr.kernels.cpu.packing import aligned_zeros, pack_panels
from apr.kernels.cpu.threads import Team

STRIP = 4  # panels computed at a time; what lies below the diagonal of a strip is computed as well


def add_upper_gram(x: torch.Tensor, total: torch.Tensor, team: Team) -> None:
    """total += x^T x, on and above the diagonal at least.

    x: bf16 (rows, C), contiguous. total: fp32 (C, C), changed in place.
    """
    rows, size = x.shape
    depth = -(-rows // PANEL) * PANEL
    turned = torch.zeros(size, depth, dtype=torch.bfloat16)
    turned[:, :rows] = x.t()
    panels = pack_panels(turned)
    scratch = aligned_zeros((size, STRIP * PANEL), np.float32)
    result = torch.from_numpy(scratch)
    panel_bytes = depth // 2 * PAIR_BYTES
    for first in range(0, len(panels), STRIP):
        count = min(STRIP, len(panels) - first)
        left, right = first * PANEL, min((first + count) * PANEL, size)
        team.run(
            linear, turned.data_ptr(), 2 * depth, right,
            panels.ctypes.data + first * panel_bytes, count, depth,
            scratch.ctypes.data, scratch.strides[0],
            keep=(turned, panels, scratch),
        )  # fmt: skip
        total[:right, left:right] += result[:right, : right - left]


def add_squares(x: torch.Tensor, total: torch.Tensor, team: Team) -> None:
    """total += the sum of x * x over rows. x: bf16 (rows, C), contiguous. total: fp32 (C,)."""
    shares = np.zeros((team.threads, x.shape[1]), np.float32)
    team.run(_squares, x.view(torch.uint16).numpy(), shares, keep=(x, shares))
    total += torch.from_numpy(shares.sum(axis=0))


@njit(nogil=True, cache=True, fastmath=FAST)
def _squares(tid, threads, bits, totals):
    rows, total = bits.shape[0], totals[tid]
    for r in range(tid * rows // threads, (tid + 1) * rows // threads):
        row = bits[r]
        for i in range(row.shape[0]):
            value = from_bf16(row[i])
            total[i] += value * value
