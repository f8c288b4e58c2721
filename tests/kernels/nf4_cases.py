"""Weights that NF4 is compared on; made the same way wherever they are needed."""

from __future__ import annotations

import torch

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def nf4_cases() -> dict[str, torch.Tensor]:
    """By name: what occurs, and what is awkward (blocks cut short, ties, zeros, extremes)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    levels = torch.tensor(LEVELS)
    middles = torch.cat([(levels[1:] + levels[:-1]) / 2, torch.tensor([1.0])]).repeat(4)
    half = normal(256, 64)
    half[::2] = 0
    return {
        "normal": normal(1024, 576),
        "bf16": normal(512, 576).bfloat16(),
        "fp16": normal(256, 640).half(),
        "small": normal(300, 64) * 1e-3,
        "subnormal": normal(64, 64) * 1e-42,
        "huge": normal(64, 640) * 1e34,
        "short last block": normal(7, 34),
        "odd": normal(65),
        "one": torch.tensor([0.5]),
        "zeros": torch.zeros(128, 64),
        "zero blocks": half,
        "constant": torch.full((64, 256), -3.0),
        "ties": torch.rand(512, 1, generator=generator) * middles,
    }
