"""Cross-entropy whose logits never exist all at once."""

from __future__ import annotations

from typing import Any

import torch

from apr.kernels.differentiable import entropy_in_place
from apr.kernels.ops import matmul

# Positions whose logits exist at one time: with a vocabulary of 150k in bf16, 77 MB.
CHUNK = 256
IGNORED = -100  # the label of a position that has no loss


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Sum over positions of -log softmax(hidden W^T)[label], in nats; fp32 scalar.

    hidden: (N, C), weight: (V, C) of the same dtype, labels: integers (N,), none IGNORED. softcap:
    logits become softcap * tanh(logits / softcap). Products are taken in the dtype of hidden, the
    softmax in fp32. The gradient to hidden (and to the weight, if it asks for one) is computed
    chunk by chunk along with the loss, so that logits exist once and for `chunk` positions.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, softcap, chunk)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        softcap: float | None,
        chunk: int,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad
        dhidden = torch.empty_like(hidden) if wanted[0] else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        # One piece of memory for all chunks of all calls' sizes: allocators keep the holes that
        # large tensors of ever new sizes leave.
        room = torch.empty(chunk, len(weight), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            rows = hidden[start : start + chunk]
            logits = matmul(rows, weight.T, out=room[: len(rows)])  # (n, V)
            some = labels[start : start + chunk]
            total += losses_in_place(logits, some, softcap, any(wanted)).double().sum()
            if dhidden is not None:
                matmul(logits, weight, out=dhidden[start : start + chunk])
            if dweight is not None:
                dweight += matmul(logits.T, rows)
        ctx.save_for_backward(dhidden, dweight)
        ctx.weight_dtype = weight.dtype
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = gradients
        dhidden, dweight = ctx.saved_tensors
        if dhidden is not None:
            dhidden = dhidden * scale.to(dhidden.dtype)
        if dweight is not None:
            dweight = (dweight * scale).to(ctx.weight_dtype)
        return dhidden, dweight, None, None, None


def losses_in_place(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, gradient: bool
) -> torch.Tensor:
    """fp32 (n,) losses; with gradient, logits (n, V) become the gradient to them."""
    if softcap is None:
        return entropy_in_place(logits, labels, gradient)
    capped = torch.tanh(logits.float() / softcap)
    slope = 1 - capped.square()
    wide = softcap * capped
    losses = entropy_in_place(wide, labels, gradient)
    if gradient:
        logits.copy_(wide * slope)
    return losses
