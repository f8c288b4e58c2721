"""GGUF formats of 32 elements a block. Each function: uint8 (n, bytes) → fp32 (n, 32).

Bytes of a block, by offset (d scale, m minimum, both fp16; qs packed integers):

    Q4_0    18   d 0   qs 2..18                    d * (q - 8)
    Q4_1    20   d 0   m 2   qs 4..20              d * q + m
    Q5_0    22   d 0   qh 2..6   qs 6..22          d * (q - 16)
    Q5_1    24   d 0   m 2   qh 4..8   qs 8..24    d * q + m
    Q8_0    34   d 0   qs 2..34 (int8)             d * q
    IQ4_NL  18   d 0   qs 2..18                    d * CODEBOOK[q]

4-bit values: byte i of qs holds element i in its low and element i + 16 in its high half. The
fifth bit of element i is bit i of qh (little-endian u32).

Source: `block_q4_0` ... in ggml-common.h, `dequantize_row_*` in ggml-quants.c.
"""

from __future__ import annotations

import functools

import torch

from apr.checkpoint.bit_fields import either, field, half, signed, split_bits, spread_bits

# The non-linear 4-bit levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl`).
CODEBOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@functools.lru_cache(maxsize=4)
def _level_pairs(device: torch.device) -> torch.Tensor:
    """int16 (256,): the two int8 levels that the two halves of a byte stand for, low half first."""
    level = torch.tensor(CODEBOOK, dtype=torch.int8)
    byte = torch.arange(256)
    pairs = torch.stack((level[byte & 15], level[byte >> 4]), dim=1)
    return pairs.view(torch.int16).view(256).to(device)


def codebook_levels(packed: torch.Tensor) -> torch.Tensor:
    """Uint8 (..., k) → int8 (..., 2, k): levels of the low halves, then of the high halves."""
    pairs = _level_pairs(packed.device).index_select(0, packed.reshape(-1).int())
    return pairs.view(torch.int8).view(*packed.shape, 2).transpose(-1, -2)


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    q = signed(split_bits(field(blocks, 2, 18), 4), 8)
    return q.view(-1, 32).float().mul_(half(blocks, 0))


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    q = split_bits(field(blocks, 4, 20), 4)
    return q.view(-1, 32).float().mul_(half(blocks, 0)).add_(half(blocks, 2))


def q5_0(blocks: torch.Tensor) -> torch.Tensor:
    low = split_bits(field(blocks, 6, 22), 4).view(-1, 32)
    q = signed(either(low, spread_bits(field(blocks, 2, 6), 16)), 16)
    return q.float().mul_(half(blocks, 0))


def q5_1(blocks: torch.Tensor) -> torch.Tensor:
    low = split_bits(field(blocks, 8, 24), 4).view(-1, 32)
    q = either(low, spread_bits(field(blocks, 4, 8), 16))
    return q.float().mul_(half(blocks, 0)).add_(half(blocks, 2))


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return field(blocks, 2, 34).view(torch.int8).float().mul_(half(blocks, 0))


def iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    levels = codebook_levels(field(blocks, 2, 18)).reshape(-1, 32)
    return levels.float().mul_(half(blocks, 0))
