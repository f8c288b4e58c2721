"""Layers and inputs on which our masks are compared with those of the papers' own code."""

from __future__ import annotations

import torch

ROWS, COLUMNS, SEQUENCES, TOKENS = 24, 160, 6, 40
DEAD = 7  # an input that is always zero
# name -> (sparsity, (zeros, group) of a pattern or None)
AMOUNTS: dict[str, tuple[float, tuple[int, int] | None]] = {
    "0.5": (0.5, None),
    "0.3": (0.3, None),
    "2:4": (0.5, (2, 4)),
    "4:8": (0.5, (4, 8)),
}
OWL_LAYERS, OWL_SPREAD, OWL_OUTLIER = 4, 0.08, 5.0


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def inputs() -> torch.Tensor:
    """fp32 (SEQUENCES, TOKENS, COLUMNS), correlated and of different sizes."""
    generator = torch.Generator().manual_seed(100)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator) * COLUMNS**-0.5
    sizes = torch.randn(COLUMNS, generator=generator).exp()
    sizes[DEAD] = 0
    x = torch.randn(SEQUENCES, TOKENS, COLUMNS, generator=generator)
    return (x + 0.7 * x @ mix) * sizes


def owl_weights() -> list[torch.Tensor]:
    """Layers with more and more outliers."""
    return [weight(i).sign() * weight(i).abs() ** (1 + 0.6 * i) for i in range(OWL_LAYERS)]
