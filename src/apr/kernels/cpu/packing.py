"""Weights into panels (see `microkernel`): done once, when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from apr.kernels.cpu.microkernel import PANEL

ALIGNMENT = 64
Zeros = Callable[[tuple[int, ...], type], np.ndarray]


def padded(size: int) -> int:
    """`size` rounded up to whole panels."""
    return -(-size // PANEL) * PANEL


def aligned_zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A zeroed array whose data starts on a cache line."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


class Arena:
    """Zeroed arrays out of few large pieces of memory: Linux gives these huge pages."""

    PIECE = 64 << 20

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """As `aligned_zeros`."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        taken = -(-count // ALIGNMENT) * ALIGNMENT
        if taken > len(self._rest):
            # What is left of the piece before was never touched, so never taken.
            self._rest = aligned_zeros((max(taken, self.PIECE),), np.uint8)
        found, self._rest = self._rest[:count], self._rest[taken:]
        return found.view(dtype).reshape(shape)


def pack_panels(weight: torch.Tensor, zeros: Zeros = aligned_zeros) -> np.ndarray:
    """(N, K) float tensor -> uint16 (ceil(N/64), ceil(K/64)*32, 64, 2) of bf16 bits.

    Both sizes are padded with zeros to multiples of 64.
    """
    n, k = weight.shape
    if (n % PANEL) or (k % PANEL):
        weight = torch.nn.functional.pad(weight, (0, padded(k) - k, 0, padded(n) - n))
    n, k = weight.shape
    shape = (n // PANEL, k // 2, PANEL, 2)
    out = zeros(shape, np.uint16)
    # A pair along k is one 32-bit word, so packing is a transposition of words.
    pairs = weight.to(torch.bfloat16).contiguous().view(torch.int32)
    target = torch.from_numpy(out.view(np.int32).reshape(shape[:3]))
    target.copy_(pairs.view(n // PANEL, PANEL, k // 2).transpose(1, 2))
    return out
