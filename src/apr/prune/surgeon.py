"""Optimal brain surgeon: weights are taken, and the others adjusted to make up for them.

A row w of a matrix and its inputs X define the error ||w X - w' X||^2, with the Hessian H = X X^T.

SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774) takes single weights, from left to right;
taking weight i costs w_i^2 / [H^-1]_ii and is best answered by changing those to its right by
-w_i / [H^-1]_ii * [H^-1]_i,: where H is the Hessian of the inputs from i on (their eq. 3). The rows
of U, with H^-1 = U^T U and U upper triangular, hold all these inverses at once (section 3.3).

Whole inputs (heads, channels) go as groups S of columns: the group of the least
tr(W_S [H^-1]_SS^-1 W_S^T), the error its loss leaves after refitting, again and again with H^-1 of
what is left (ZipLM, Kurtic et al. 2023, arXiv:2302.04089, eq. 3 and algorithm 1). What is left is
refitted by least squares: W' minimizes ||W X - W' X_kept||^2 (+ damping ||W' - W_kept||^2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from apr.calibrate.statistics import team
from apr.common.errors import AprError
from apr.prune.masks import lowest, lowest_of_groups, prune_count
from apr.prune.prune_settings import Pattern

BLOCK = 128  # columns whose corrections of the columns behind them wait for each other
DAMPING = 0.01  # of the mean of the diagonal, as in the paper
_LADDER = (1.0, 10.0, 100.0)
ROUNDS = 32  # groups are taken together in at most so many rounds: single ones where there are few


# (weight, mask, factor, pattern) -> errors: see `eliminate`
Eliminate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Pattern | None], torch.Tensor]


@dataclass(frozen=True)
class Factor:
    """upper: fp32 (in, in), U with H^-1 = U^T U. damping: what was added to the diagonal, as part
    of its mean. dead: bool (in,), inputs that were always zero.
    """

    upper: torch.Tensor
    damping: float
    dead: torch.Tensor


def inverse_factor(hessian: torch.Tensor, damping: float = DAMPING) -> Factor:
    """The factor of the inverse of a Hessian X X^T (in, in); a common scale changes nothing.

    Where the damped Hessian has no Cholesky factor, ten and a hundred times the damping are tried;
    the result says what was used. Raises AprError when none is enough.
    """
    dead = hessian.diagonal() == 0
    mean = hessian.diagonal().mean()
    # Reversed, its lower factor L gives H = R R^T with R upper triangular, and U = R^-1: no
    # inverse of H is formed, which in fp32 would cost digits.
    for step in _LADDER:
        damped = hessian.flip(0, 1)
        damped.diagonal().add_(damping * step * mean + dead.flip(0))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            identity = torch.eye(len(hessian), dtype=lower.dtype, device=lower.device)
            # Flipping both axes of L^-1 gives R^-1.
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            return Factor(inverse.flip(0, 1).contiguous(), damping * step, dead)
    raise AprError(
        f"no damping up to {damping * _LADDER[-1]:g} makes this Hessian positive definite",
        "use more calibration sequences, or method wanda",
    )


def sparsegpt(
    weight: torch.Tensor,
    factor: Factor,
    sparsity: float,
    pattern: Pattern | None = None,
    *,
    block: int = BLOCK,
    eliminate: Eliminate | None = None,
) -> torch.Tensor:
    """The pruned and adjusted weights, fp32 (out, in).

    weight: (out, in). Without a pattern, the part `sparsity` of each block of `block` columns is
    taken, those of least w^2 / U_ii^2 when the block is reached; with one, the least of each
    group when the group is reached. eliminate: the function of this name; None: its compiled form
    where there is one. Raises UsageError when the pattern does not divide a row.
    """
    columns = weight.shape[1]
    if pattern is not None:
        pattern.check_divides(columns)
        block = max(block // pattern.group, 1) * pattern.group
    step = eliminate or (_eliminate_rows if weight.device.type == "cpu" else _eliminate)
    w = weight.float().masked_fill(factor.dead, 0.0)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        here = w[:, first:last].contiguous()
        u = factor.upper[first:last, first:last].contiguous()
        if pattern is None:
            # One more than floor(sparsity * size): the authors' threshold takes the weight it is.
            count = min(prune_count(here.numel(), sparsity) + 1, here.numel())
            mask = lowest((here / u.diagonal()).square(), count)
        else:
            mask = torch.zeros_like(here, dtype=torch.bool)
        errors = step(here, mask, u, pattern)
        w[:, first:last] = here
        w[:, last:].addmm_(errors, factor.upper[first:last, last:], alpha=-1)
    return w


def eliminate(
    weight: torch.Tensor, mask: torch.Tensor, factor: torch.Tensor, pattern: Pattern | None
) -> torch.Tensor:
    """Take the masked weights of a block from left to right, adjusting those to their right.

    weight: fp32 (out, block), changed in place. mask: bool (out, block), filled in here where
    there is a pattern. factor: (block, block), the block of U. Returns the errors fp32 (out,
    block), by which the rows of U change all columns behind the block.
    """
    errors = torch.zeros_like(weight)
    diagonal = factor.diagonal()
    for i in range(weight.shape[1]):
        if pattern is not None and i % pattern.group == 0:
            group = slice(i, i + pattern.group)
            costs = (weight[:, group] / diagonal[group]).square()
            mask[:, group] = lowest_of_groups(costs, pattern)
        errors[:, i] = torch.where(mask[:, i], weight[:, i] / diagonal[i], 0.0)
        weight[:, i + 1 :] -= errors[:, i, None] * factor[i, i + 1 :]
    weight.masked_fill_(mask, 0.0)
    return errors


_eliminate = eliminate  # where a parameter has the name


def _eliminate_rows(
    weight: torch.Tensor, mask: torch.Tensor, factor: torch.Tensor, pattern: Pattern | None
) -> torch.Tensor:
    """`eliminate`, compiled; all on the CPU."""
    from apr.kernels.cpu.pruning import eliminate_rows

    errors = torch.empty_like(weight)
    group, zeros = (pattern.group, pattern.zeros) if pattern else (0, 0)
    arrays = (weight.numpy(), mask.numpy(), factor.numpy(), errors.numpy())
    team().run(eliminate_rows, *arrays, group, zeros, keep=arrays)
    return errors


# -- whole inputs --------------------------------------------------------------------------------


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
