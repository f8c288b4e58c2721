"""The one place that chooses how a matrix is multiplied: by the form it is stored in, the device,
the type, and whether a gradient is wanted.

A matrix is a tensor, or any object with a shape (out, in), a device and `numbers(dtype, out)`: it
stays as it is stored, becomes numbers in memory that all such matrices share for the moment of a
product, and gets no gradient. Where a processor has no bf16 products, torch's own run several to a
hundred times as long as fp32 ones. Those here widen a piece of each factor to fp32, small enough to
stay in the caches, multiply the pieces in fp32, and round once to bf16: what hardware does, too.
What is kept for the backward pass stays bf16.

Large tensors that a training step keeps come from `empty`. torch asks the C library for aligned
pieces (posix_memalign); glibc (2.36) cuts these out of larger ones, so that a freed piece does not
fit the next of its size, and a step's activations leave holes of up to half of what is kept. Pieces
of malloc, aligned here, fill the places of freed ones.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from apr.kernels import reference

# How much of the longest dimension is wide at a time.
PIECE = 1024

_ROOMS = threading.local()
_SCRATCH: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
# Rows of an output layer that are numbers at a time.
_OUTPUT_ROWS = 4096
_ALIGNMENT = 64  # bytes: a cache line, a vector of AVX-512
_LEAST = 512 << 10  # bytes: smaller tensors are not what fills memory


class Matrix(Protocol):
    """A matrix (out, in) in some stored form."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...

    def numbers(self, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
        """(out, in) in dtype, written to `out` where that is given."""
        ...


class Table(Matrix, Protocol):
    """A matrix some of whose rows can be taken."""

    def rows(self, which: torch.Tensor | slice) -> Table: ...


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


def numbers(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """A stored matrix as dtype (out, in), in shared memory: only until another's are asked for."""
    count, place = prod(matrix.shape), (dtype, matrix.device)
    if place not in _SCRATCH or _SCRATCH[place].numel() < count:
        with torch.inference_mode(False):  # training may follow an answer in one run
            _SCRATCH[place] = torch.empty(count, dtype=dtype, device=matrix.device)
    return matrix.numbers(dtype, _SCRATCH[place])


def multiplies_bf16(device: torch.device) -> bool:
    """Whether torch's bf16 matrix products are as fast as fp32 ones there, or faster."""
    if device.type != "cpu":
        return True
    from apr.kernels.cpu.intrinsics import target_features

    return bool({"avx512bw", "bf16"} & target_features())  # x86, Arm


def widens(x: torch.Tensor) -> bool:
    """Whether products of x are taken here, in fp32, and not in its own type."""
    return x.dtype == torch.bfloat16 and not multiplies_bf16(x.device)


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a b in the type of a: a (n, k), b (k, m). No gradients."""
    if out is None:
        out = empty((len(a), b.shape[1]), a.dtype, a.device)
    if widens(a):
        _widened(a, b, out, 0.0, 1.0)
    else:
        torch.mm(a, b, out=out)
    return out


def add_product(y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """y + scale a b, written into y (n, m); rounded once. No gradients."""
    if not widens(a):
        return y.addmm_(a, b, alpha=scale)
    _widened(a, b, y, 1.0, scale)
    return y


def linear(
    x: torch.Tensor, weight: torch.Tensor | Matrix, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + bias: x (..., in), weight (out, in), bias (out,)."""
    if not isinstance(weight, torch.Tensor):
        return _FrozenLinear.apply(x, weight, bias)
    if widens(x) or (x.device.type == "cpu" and torch.is_grad_enabled()):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`linear` without gradients."""
    y = empty((*x.shape[:-1], len(weight)), x.dtype, x.device)
    flat = y.view(-1, len(weight))
    if bias is None:
        matmul(x.flatten(0, -2), weight.T, out=flat)
    else:
        flat[:] = bias
        add_product(flat, x.flatten(0, -2), weight.T, 1.0)
    return y


def linear_gradient(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of `linear` to x, (..., in): dy (..., out)."""
    dx = empty((*dy.shape[:-1], weight.shape[1]), dy.dtype, dy.device)
    matmul(dy.flatten(0, -2), weight, out=dx.view(-1, weight.shape[1]))
    return dx


def linear_fp32(x: torch.Tensor, weight: torch.Tensor | Table) -> torch.Tensor:
    """x W^T with products, sums and result in fp32; a stored matrix is rounded to x's dtype first.

    x: (..., C). weight: (V, C).
    """
    if isinstance(weight, torch.Tensor):
        return reference.linear_fp32(x, weight)
    wide, parts = x.float(), []
    for start in range(0, weight.shape[0], _OUTPUT_ROWS):
        rows = weight.rows(slice(start, start + _OUTPUT_ROWS))
        parts.append(F.linear(wide, numbers(rows, x.dtype).float()))
    return torch.cat(parts, dim=-1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return linear_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = gradients
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows = dy.flatten(0, -2)
        dx = linear_gradient(dy, weight) if wanted[0] else None
        dweight = matmul(rows.T, x.flatten(0, -2)) if wanted[1] else None
        dbias = rows.float().sum(0).to(dy.dtype) if wanted[2] else None
        return dx, dweight, dbias


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.weight = weight
        return linear_product(x, numbers(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (dy,) = gradients
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return linear_gradient(dy, numbers(ctx.weight, dy.dtype)), None, None


@torch.no_grad()
def _widened(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor, keep: float, scale: float) -> None:
    """y = keep y + scale a b in fp32, in pieces of the longest of the three dimensions.

    keep: 0 or 1; with 0 y may hold anything, numbers that are none included.
    """
    rows, inner, columns = len(a), len(b), b.shape[1]
    longest = max(rows, inner, columns)
    if longest == inner:
        total = _wide("sum", y)
        for i in range(0, inner, PIECE):
            left, right = _wide("left", a[:, i : i + PIECE]), _wide("right", b[i : i + PIECE])
            total.addmm_(left, right, beta=keep if i == 0 else 1.0, alpha=scale)
        y.copy_(total)
    elif longest == rows:
        right = _wide("right", b)
        for i in range(0, rows, PIECE):
            part = y[i : i + PIECE]
            left, total = _wide("left", a[i : i + PIECE]), _wide("sum", part)
            part.copy_(total.addmm_(left, right, beta=keep, alpha=scale))
    else:
        _widened(b.T, a.T, y.T, keep, scale)


def _wide(place: str, x: torch.Tensor) -> torch.Tensor:
    """x (n, m) in fp32, in one of three pieces of memory that all products share.

    New memory for each would be new pages each time, and holes between what is kept.
    """
    if x.stride(0) < x.stride(1):
        return _wide(place, x.T).T
    rooms = _ROOMS.__dict__
    if place not in rooms or rooms[place].numel() < x.numel():
        with torch.inference_mode(False):  # training may follow an answer in one run
            rooms[place] = torch.empty(x.numel())
    return rooms[place][: x.numel()].view(x.shape).copy_(x)
