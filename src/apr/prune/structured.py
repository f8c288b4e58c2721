"""Taking whole inputs of a matrix (heads, channels) and making the others up for them.

A matrix W (out, in) with inputs X loses groups of its columns. What is left is refitted by least
squares: W' minimizes ||W X - W' X_kept||^2 (+ damping ||W' - W_kept||^2). Which groups go is the
group form of optimal brain surgeon as in ZipLM (Kurtic et al. 2023, arXiv:2302.04089, eq. 3 and
algorithm 1): the group S of the least tr(W_S [H^-1]_SS^-1 W_S^T), the error its loss leaves after
refitting, again and again with H^-1 of what is left.
"""

from __future__ import annotations

import torch

from apr.prune.sparsegpt import inverse_factor

# Groups are taken together in at most this many rounds: single ones where there are few.
ROUNDS = 32


def choose_groups(
    weight: torch.Tensor, hessian: torch.Tensor, size: int, keep: int, damping: float
) -> tuple[torch.Tensor, float]:
    """(the groups to keep, int64 ascending; the damping used).

    weight: (out, in). hessian: X X^T (in, in). size: neighbouring columns that make a group.
    Raises AprError where no damping makes the Hessian positive definite.
    """
    factor = inverse_factor(hessian, damping)
    inverse = factor.upper.t() @ factor.upper
    w = weight.float().masked_fill(factor.dead, 0.0)
    left = torch.arange(w.shape[1] // size, device=w.device)
    each = max(1, (len(left) - keep) // ROUNDS)
    while len(left) > keep:
        count = min(each, len(left) - keep)
        taken = torch.topk(_costs(w, inverse, size), count, largest=False).indices
        stays = torch.ones(len(left), dtype=torch.bool, device=w.device)
        stays[taken] = False
        gone, rest = _columns(~stays, size), _columns(stays, size)
        # [H^-1]_SS^-1 [H^-1]_S,rest: how the others answer the loss of S.
        answer = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, rest])
        w = w[:, rest] - w[:, gone] @ answer
        inverse = inverse[rest][:, rest] - inverse[rest][:, gone] @ answer
        left = left[stays]
    return left, factor.damping


def _costs(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> torch.Tensor:
    """tr(W_S [H^-1]_SS^-1 W_S^T) of each group S of columns."""
    if size == 1:
        return weight.square().sum(dim=0) / inverse.diagonal()
    groups = weight.shape[1] // size
    blocks = inverse.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    by_group = weight.view(len(weight), groups, size).permute(1, 2, 0)  # (groups, size, out)
    return (by_group * torch.linalg.solve(blocks, by_group)).sum(dim=(1, 2))


def _columns(chosen: torch.Tensor, size: int) -> torch.Tensor:
    return chosen.repeat_interleave(size).nonzero().flatten()


def columns_of(groups: torch.Tensor, size: int) -> torch.Tensor:
    """Indices of the columns of groups, int64 (len(groups) * size,)."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def refit(
    weight: torch.Tensor, hessian: torch.Tensor, kept: torch.Tensor, damping: float
) -> torch.Tensor:
    """The least-squares weights fp32 (out, len(kept)) of the columns kept.

    damping: of the mean of the Hessian's diagonal; one that made the whole Hessian positive
    definite does so for every part of it.
    """
    damped = hessian.clone()
    damped.diagonal().add_(damping * hessian.diagonal().mean() + (hessian.diagonal() == 0))
    lower = torch.linalg.cholesky(damped[kept][:, kept])
    return torch.cholesky_solve((weight.float() @ damped[:, kept]).t(), lower).t()
