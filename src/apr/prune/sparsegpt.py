"""SparseGPT: pruning with the other weights adjusted to make up for those taken.

Frantar and Alistarh 2023 (arXiv:2301.00774). A row w of a layer and its inputs X define the error
||w X - w' X||^2. Weights are visited from left to right; taking weight i costs w_i^2 / [H^-1]_ii
and is best answered by changing those to its right by -w_i / [H^-1]_ii * [H^-1]_i,: where H is the
Hessian of the inputs from i on (optimal brain surgeon, their eq. 3). The rows of U, with
H^-1 = U^T U and U upper triangular, hold all these inverses at once (their section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from apr.common.errors import AprError
from apr.prune.pattern import Pattern
from apr.prune.scores import check_divides, lowest, lowest_of_groups, prune_count

BLOCK = 128  # columns whose corrections of the columns behind them wait for each other
DAMPING = 0.01  # of the mean of the diagonal, as in the paper
_LADDER = (1.0, 10.0, 100.0)


class Eliminate(Protocol):
    """See `eliminate`."""

    def __call__(
        self,
        weight: torch.Tensor,
        mask: torch.Tensor,
        factor: torch.Tensor,
        pattern: Pattern | None,
    ) -> torch.Tensor: ...


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
        "use more calibration sequences, or --method wanda",
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
    group when the group is reached. eliminate: a faster form of the function of this name. Raises
    UsageError when the pattern does not divide a row.
    """
    columns = weight.shape[1]
    if pattern is not None:
        check_divides(pattern, columns)
        block = max(block // pattern.group, 1) * pattern.group
    step = eliminate or _eliminate
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
