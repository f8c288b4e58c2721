"""Which weights to take: scores of weights, and masks of the lowest scores.

A mask is bool, True where a weight is pruned. Exactly as many weights are pruned as asked for, also
where scores are equal (there the first are taken).
"""

from __future__ import annotations

import numpy as np
import torch

from apr.prune.prune_settings import Pattern

# Groups up to this size are ranked by comparing every pair.
_COMPARED = 8


def wanda_scores(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|W_ij| * ||X_j||_2, fp32 (out, in). Sun et al. 2024 (arXiv:2306.11695), eq. 1.

    weight: (out, in), any float type. norms: (in,), the norm of each input over all tokens; a
    factor common to all of them changes nothing.
    """
    return weight.float().abs() * norms.float()


def prune_count(size: int, sparsity: float) -> int:
    """floor(sparsity * size), 0.29 of 100 being 29 whatever binary fractions say."""
    return int(size * sparsity + 1e-9)


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the `count` lowest scores of all: magnitude pruning, one group per matrix."""
    return lowest_of_rows(scores.flatten()[None], count).view(scores.shape)


def lowest_of_rows(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the `count` lowest scores of each row: Wanda's group, the weights of one output.

    scores: (rows, columns), not NaN.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = _kth(scores, count)
    mask = scores <= limit
    taken = mask.sum(dim=1)
    if bool((taken > count).any()):  # equal scores at the limit: the first of them
        rows, columns = (scores == limit).nonzero(as_tuple=True)
        equal = torch.bincount(rows, minlength=len(scores))
        rank = torch.arange(len(rows), device=rows.device) - (equal.cumsum(0) - equal)[rows]
        mask[rows, columns] = rank < (count - taken + equal)[rows]
    return mask


def _kth(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The count-th smallest of each row, (rows, 1)."""
    if scores.device.type != "cpu":
        return scores.kthvalue(count, dim=1, keepdim=True).values
    found = np.partition(scores.numpy(), count - 1, axis=1)[:, count - 1 : count]
    return torch.from_numpy(found)


def lowest_of_groups(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Mask of the lowest scores of every `pattern.group` neighbours in a row.

    scores: (rows, columns). Raises UsageError when the pattern does not divide a row.
    """
    rows, columns = scores.shape
    pattern.check_divides(columns)
    groups = scores.view(-1, pattern.group)
    if pattern.group <= _COMPARED:
        return (_ranks(groups) < pattern.zeros).t().reshape(rows, columns)
    taken = groups.sort(dim=1, stable=True).indices[:, : pattern.zeros]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, taken, True)
    return mask.view(rows, columns)


def _ranks(groups: torch.Tensor) -> torch.Tensor:
    """uint8 (group, groups): each score's place in its row of groups, equal ones in their order.

    By comparing each pair, four times as fast as sorting rows of four.
    """
    places = groups.t().contiguous()
    ranks = torch.zeros(places.shape, dtype=torch.uint8, device=groups.device)
    for later in range(1, len(places)):
        for earlier in range(later):
            before = places[earlier] <= places[later]
            ranks[later] += before
            ranks[earlier] += ~before
    return ranks
