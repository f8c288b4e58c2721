"""Cross-entropy whose logits never exist all at once."""

from __future__ import annotations

from typing import Any

import torch

from apr.model.transformer import Transformer

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
        for start in range(0, len(hidden), chunk):
            rows = hidden[start : start + chunk]
            logits = rows @ weight.T  # (n, V)
            losses, dlogits = loss_and_gradient(
                logits, labels[start : start + chunk], softcap, any(wanted)
            )
            total += losses.double().sum()
            if dhidden is not None:
                torch.mm(dlogits, weight, out=dhidden[start : start + chunk])
            if dweight is not None:
                dweight += dlogits.T @ rows
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


def loss_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 (n,) losses, and their gradient to the logits (n, V) in the logits' dtype."""
    wide = logits.float()
    if softcap is not None:
        wide = softcap * torch.tanh(wide / softcap)
    picked = labels[:, None]
    logsumexp = wide.logsumexp(1, keepdim=True)
    losses = (logsumexp - wide.gather(1, picked))[:, 0]
    if not gradient:
        return losses, logits
    slope = (wide - logsumexp).exp_()
    slope.scatter_add_(1, picked, torch.full_like(picked, -1.0, dtype=torch.float32))
    if softcap is not None:
        slope *= 1 - (wide / softcap).square()
    return losses, slope.to(logits.dtype)


def output_weight(model: Transformer) -> torch.Tensor:
    """(V, C): the output layer's matrix, the embedding where they are one."""
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    return head.weight
