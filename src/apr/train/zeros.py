"""Training a pruned model without filling its zeros."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from apr.errors import UsageError


def keep_zeros(model: nn.Module) -> int:
    """Give the layers' weights that are zero no gradient; how many these are.

    AdamW then never moves them: their moments, their update and their decay stay exactly zero.
    Raises UsageError where no weight is zero.
    """
    kept = 0
    for name, parameter in model.named_parameters():
        if not name.endswith("_proj.weight"):
            continue
        zeros = parameter.detach() == 0
        count = int(zeros.sum())
        if count:
            kept += count
            parameter.register_hook(_without(zeros))
    if not kept:
        raise UsageError("--keep-mask: no weight of the layers is zero", "prune the model first")
    return kept


def _without(zeros: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient.masked_fill(zeros, 0)
