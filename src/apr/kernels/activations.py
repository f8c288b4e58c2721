"""Memory of what a training step keeps.

torch asks the C library for aligned pieces (posix_memalign). glibc (2.36) cuts these out of larger
ones, so that a freed piece does not fit the next of its size: a step's activations leave holes of
up to half of what is kept. Pieces of malloc, aligned here, fill the places of freed ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_ALIGNMENT = 64  # bytes: a cache line, a vector of AVX-512
_LEAST = 512 << 10  # bytes: smaller ones are not what fills memory


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """torch.empty; on a CPU large tensors come from malloc."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or nbytes < _LEAST:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    storage = torch.from_numpy(memory[start : start + nbytes]).untyped_storage()
    # No view of another tensor: autograd would not let it be added to in place.
    return torch.empty(0, dtype=dtype).set_(storage).resize_(shape)


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """`empty` of x's shape, contiguous."""
    return empty(x.shape, x.dtype, x.device)
