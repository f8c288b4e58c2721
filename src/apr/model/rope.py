"""Rotary frequencies of a model: the base, its stretching, and which set a length asks for.

Su et al. 2021 (arXiv:2104.09864, eq. 15): dimension pair i turns by theta^(-2i/d) per position.
"""

from __future__ import annotations

import math

import torch

from apr.model.config import ModelConfig, RopeScaling


def inverse_frequencies(
    config: ModelConfig, *, local: bool = False, long: bool = False
) -> tuple[torch.Tensor, float]:
    """Radians per position, fp32 (rotary_dim / 2,) on the CPU, and the factor on cos and sin.

    local: those of sliding-window layers, where the family gives them a base of their own.
    long: LongRoPE's factors for sequences beyond the original context (see `needs_long_factors`);
        no effect on the other kinds of scaling.
    """
    dim = config.rotary_dim or config.head_dim
    if local and config.rope_local_theta is not None:
        return scaled_frequencies(config.rope_local_theta, dim, None)
    return scaled_frequencies(config.rope_theta, dim, config.rope_scaling, long=long)


def scaled_frequencies(
    theta: float, dim: int, scaling: RopeScaling | None, *, long: bool = False
) -> tuple[torch.Tensor, float]:
    """Frequencies fp32 (dim / 2,) and the factor on cos and sin, from the numbers themselves."""
    plain = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(plain, scaling, theta), _yarn_attention_factor(scaling)
    factors = scaling.long_factor if long else scaling.short_factor
    stretch = torch.tensor(factors, dtype=torch.float32, device="cpu")
    return plain / stretch, _longrope_attention_factor(scaling)


def needs_long_factors(config: ModelConfig, length: int) -> bool:
    """Whether a sequence of `length` positions is rotated with LongRoPE's long factors."""
    scaling = config.rope_scaling
    return scaling is not None and scaling.kind == "longrope" and length > _original(scaling)


def extended_context(declared: int, scaling: RopeScaling | None) -> int:
    """Positions a model may reach whose files declare so many.

    YaRN is published as a recipe to be added to a configuration (`factor` 4 over 32768) that then
    still declares the context before.
    """
    if scaling is None or scaling.kind != "yarn":
        return declared
    return max(declared, int(scaling.factor * _original(scaling)))


def short_context(config: ModelConfig) -> int:
    """Positions that need no long factors: the model's context but for LongRoPE models."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "longrope":
        return config.max_position
    return min(config.max_position, scaling.original_max_position or config.max_position)


def _original(scaling: RopeScaling) -> int:
    if scaling.original_max_position is None:
        raise ValueError(f"{scaling.kind} scaling needs original_max_position")
    return scaling.original_max_position


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1: low frequencies are divided by `factor`, high ones kept, a blend between.

    Dubey et al. 2024 (arXiv:2407.21783) section 3.4.2 and the released configuration: the bands
    are bounded by how many turns a frequency makes within the original context.
    """
    turns = _original(scaling) * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return plain * ((1 - keep) / scaling.factor + keep)


def _yarn(plain: torch.Tensor, scaling: RopeScaling, theta: float) -> torch.Tensor:
    """YaRN's "NTK-by-parts" (arXiv:2309.00071, section 3.2), with its ramp over the pair index."""
    dim, original = 2 * plain.shape[0], _original(scaling)

    def index_of(turns: float) -> float:
        """The (real) pair index whose frequency makes `turns` turns in the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first if last != first else 0.001
    index = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    stretch = ((index - first) / width).clamp(0.0, 1.0)
    return plain * (stretch / scaling.factor + (1 - stretch))


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    """arXiv:2309.00071 eq. 22: sqrt(1/t), applied to queries and keys through cos and sin."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def _longrope_attention_factor(scaling: RopeScaling) -> float:
    """LongRoPE as Phi-3 uses it (arXiv:2404.14219): sqrt(1 + ln(factor) / ln(original))."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(_original(scaling)))
