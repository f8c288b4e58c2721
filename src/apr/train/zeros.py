"""Training a pruned model without filling its zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from apr.checkpoint import Checkpoint
from apr.checkpoint.dtypes import FLOATS
from apr.common.errors import UsageError
from apr.kernels import ops
from apr.model.config import ModelConfig
from apr.model.load import stored_names
from apr.model.weights import Linear

# Trained weights are zero by chance, too; a matrix with this part of zeros was pruned.
PRUNED = 0.01


def keep_zeros(model: nn.Module) -> int:
    """Give the layers' weights that are zero no gradient; how many these are.

    AdamW then never moves them: their moments, their update and their decay stay exactly zero.
    Raises UsageError where no matrix was pruned.
    """
    kept, pruned = 0, False
    for name, parameter in model.named_parameters():
        if not name.endswith("_proj.weight"):
            continue
        zeros = parameter.detach() == 0
        count = int(zeros.sum())
        if count:
            kept += count
            pruned = pruned or count >= PRUNED * zeros.numel()
            parameter.register_hook(_without(zeros))
    if not pruned:
        raise _without_zeros()
    return kept


def check_zeros(model: nn.Module) -> None:
    """Raises UsageError where no matrix of the layers was pruned."""
    for name, module in model.named_modules():
        if not name.endswith("_proj"):
            continue
        assert isinstance(module, Linear)
        if module.zeros(module.numbers(torch.float32)).float().mean() >= PRUNED:
            return
    raise _without_zeros()


_ROWS = 64  # of each matrix, which are looked at
_PRUNED = 0.15  # share of zeros; weights that were quantized to four bits may have a tenth


def filling_note(checkpoint: Checkpoint, config: ModelConfig, method: str) -> str:
    """What training without `keep_mask` will do to a pruned model; "" for one that is not.

    Looks at a few rows of each matrix. A file of quantized blocks counts as not pruned.
    """
    zeros = total = 0
    for name, stored in stored_names(checkpoint, config).items():
        if name.endswith("_proj.weight"):
            if checkpoint.tensors.info(stored).dtype not in FLOATS:
                return ""
            rows = checkpoint.tensors.get(stored)[:_ROWS]
            zeros, total = zeros + int((rows == 0).sum()), total + rows.numel()
    if zeros < _PRUNED * total:
        return ""
    how = "training" if method == "full" else "merging the adapter"
    return (
        f"about {100 * zeros / total:.0f} % of the layers' weights are zero: {how} fills them in,"
        " unless --keep-mask is given"
    )


def _without_zeros() -> UsageError:
    return UsageError(
        f"`keep_mask`: in no matrix of the layers are {PRUNED:.0%} of the weights zero",
        "prune the model first, or train without it",
    )


def _without(zeros: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient.masked_fill(zeros, 0)


class MaskedUpdate(torch.autograd.Function):
    """x (W + s M * (B A))^T + bias, where M is 0 where W is 0, and 1 elsewhere.

    x: (..., in). frozen: gives W (out, in) in the dtype of x, and where M is 0, forward and
    backward. a: fp32 (r, in), b: fp32 (out, r). The sum is made in fp32 and rounded to W's dtype,
    as it would be after merging; the gradient to it is that of a full matrix, which costs one more
    product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        frozen: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.frozen, ctx.scaling = frozen, scaling
        return ops.linear_product(x, _updated(*frozen(), a, b, scaling), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = gradients
        x, a, b = ctx.saved_tensors
        weight, zeros = ctx.frozen()
        dweight = ops.matmul(dy.flatten(0, -2).T, x.flatten(0, -2)).float()
        dweight.mul_(ctx.scaling).masked_fill_(zeros, 0)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = ops.linear_gradient(dy, _updated(weight, zeros, a, b, ctx.scaling))
        return dx, None, None, b.T @ dweight, dweight @ a.T, None


def masked_update(
    weight: torch.Tensor, product: torch.Tensor, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """weight + product, both fp32, but zeros stay: where zeros says so, or else the weight's."""
    return weight + product.masked_fill(weight == 0 if zeros is None else zeros, 0)


def _updated(
    weight: torch.Tensor, zeros: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> torch.Tensor:
    return masked_update(weight.float(), scaling * (b @ a), zeros).to(weight.dtype)
