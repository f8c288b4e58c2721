"""What calibration remembers of a layer's inputs: their norms, or their Hessian."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch

from apr.common.errors import AprError
from apr.kernels.cpu.threads import Team, default_threads
from apr.kernels.differentiable import compiled

_STRIP = 256


class Statistic(Protocol):
    """Collects inputs (..., C), batch by batch."""

    def add(self, x: torch.Tensor) -> None: ...

    def norms(self) -> torch.Tensor:
        """fp32 (C,): each input's norm over all tokens."""
        ...


class Norms:
    """Squares of inputs, summed over tokens (Wanda)."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._squares = torch.zeros(size, device=device)

    def add(self, x: torch.Tensor) -> None:
        flat = x.flatten(0, -2)
        if compiled(flat):
            from apr.kernels.cpu.pruning import add_squares

            add_squares(flat.contiguous(), self._squares)
            return
        self._squares += flat.float().square().sum(dim=0)

    def norms(self) -> torch.Tensor:
        return _finite(self._squares).sqrt()


class Hessian:
    """X^T X over all tokens, fp32 (C, C); bf16 inputs are multiplied exactly.

    The factor 2 and the mean over tokens of the papers are left out: nothing depends on them.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._upper = torch.zeros(size, size, device=device)

    def add(self, x: torch.Tensor) -> None:
        flat = x.flatten(0, -2)
        if _is_compiled(flat):
            from apr.kernels.cpu.pruning import add_upper_gram

            add_upper_gram(flat.contiguous(), self._upper, team())
            return
        wide, size = flat.float(), len(self._upper)
        for first in range(0, size, _STRIP):  # about half of the products
            last = min(first + _STRIP, size)
            self._upper[:last, first:last].addmm_(wide[:, :last].t(), wide[:, first:last])

    def take(self) -> torch.Tensor:
        """The whole matrix, symmetric; `add` no more. AprError when an input was not finite."""
        _finite(self._upper.diagonal())
        size = len(self._upper)
        for first in range(0, size, _STRIP):  # in place: one Hessian is in memory, not two
            last = min(first + _STRIP, size)
            square = self._upper[first:last, first:last]
            square.copy_(square.triu() + square.triu(1).t())
            self._upper[last:, first:last] = self._upper[first:last, last:].t()
        return self._upper

    def norms(self) -> torch.Tensor:
        return _finite(self._upper.diagonal()).sqrt()


def _is_compiled(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype is torch.bfloat16


def _finite(squares: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(squares).all():
        raise AprError(
            "activations are not finite", "this model overflows: try --dtype float32, or check it"
        )
    return squares


@cache
def team() -> Team:
    """The threads of this process's kernels for statistics and pruning."""
    return Team(default_threads())
