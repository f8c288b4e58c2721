"""One matrix and the statistic of its inputs to the pruned matrix."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from apr.calibrate.statistics import Hessian, Norms, Statistic, team
from apr.common.errors import AprError
from apr.prune.pattern import Pattern
from apr.prune.scores import (
    lowest,
    lowest_of_groups,
    lowest_of_rows,
    prune_count,
    wanda_scores,
)
from apr.prune.settings import PruneSettings
from apr.prune.sparsegpt import Factor, eliminate, inverse_factor, sparsegpt


def statistic_for(settings: PruneSettings, size: int, device: torch.device) -> Statistic:
    """The empty statistic a method needs of inputs of this size."""
    return (Hessian if settings.method == "sparsegpt" else Norms)(size, device)


def magnitude_pruned(
    weight: torch.Tensor, sparsity: float, pattern: Pattern | None
) -> torch.Tensor:
    """The weight with its smallest absolute values zero, of a whole matrix or of each group."""
    scores = weight.float().abs()
    if pattern is not None:
        mask = lowest_of_groups(scores, pattern)
    else:
        mask = lowest(scores, prune_count(weight.numel(), sparsity))
    return weight.masked_fill(mask, 0)


def wanda_pruned(
    weight: torch.Tensor, norms: torch.Tensor, sparsity: float, pattern: Pattern | None
) -> torch.Tensor:
    """The weight with the lowest Wanda scores of each output zero, of each row or group."""
    scores = wanda_scores(weight, norms.to(weight.device))
    if pattern is not None:
        mask = lowest_of_groups(scores, pattern)
    else:
        mask = lowest_of_rows(scores, prune_count(weight.shape[1], sparsity))
    return weight.masked_fill(mask, 0)


@dataclass
class MatrixPruner:
    """Prunes the matrices that share one statistic; SparseGPT's factor is made once for them.

    damping: by the name of a matrix, where more than what was asked for was needed.
    """

    settings: PruneSettings
    damping: dict[str, float] = field(default_factory=dict)

    def __call__(
        self, weights: dict[str, torch.Tensor], statistic: Statistic | None, sparsity: float
    ) -> dict[str, torch.Tensor]:
        """The pruned weights of the same names, types and devices."""
        pattern = self.settings.pattern
        if self.settings.method == "magnitude":
            return {n: magnitude_pruned(w, sparsity, pattern) for n, w in weights.items()}
        assert statistic is not None
        try:
            if self.settings.method == "wanda":
                norms = statistic.norms()
                return {n: wanda_pruned(w, norms, sparsity, pattern) for n, w in weights.items()}
            assert isinstance(statistic, Hessian)
            factor = inverse_factor(statistic.take(), self.settings.damping)
        except AprError as error:
            raise AprError(
                f"inputs of {next(iter(weights))}: {error.message}", error.hint
            ) from None
        if factor.damping > self.settings.damping:
            self.damping |= dict.fromkeys(weights, factor.damping)
        return {n: self._sparsegpt(w, factor, sparsity) for n, w in weights.items()}

    def _sparsegpt(self, weight: torch.Tensor, factor: Factor, sparsity: float) -> torch.Tensor:
        on = weight.to(factor.upper.device)
        step = _eliminate_rows if on.device.type == "cpu" else eliminate
        found = sparsegpt(on, factor, sparsity, self.settings.pattern, eliminate=step)
        return found.to(device=weight.device, dtype=weight.dtype)


def _eliminate_rows(
    weight: torch.Tensor, mask: torch.Tensor, factor: torch.Tensor, pattern: Pattern | None
) -> torch.Tensor:
    """`apr.prune.sparsegpt.eliminate`, compiled."""
    from apr.kernels.cpu.pruning import eliminate_rows

    errors = torch.empty_like(weight)
    group, zeros = (pattern.group, pattern.zeros) if pattern else (0, 0)
    arrays = (weight.numpy(), mask.numpy(), factor.numpy(), errors.numpy())
    team().run(eliminate_rows, *arrays, group, zeros, keep=arrays)
    return errors
