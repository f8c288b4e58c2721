"""GGUF formats of 256 elements a block. Each function: uint8 (n, bytes) → fp32 (n, 256).

Bytes of a block, by offset (d, dmin fp16 unless said; s, t the scales of a sub-block):

    Q2_K    84   scales 0..16   qs 16..80   d 80   dmin 82
                 16 sub-blocks of 16: (d * s) * q - (dmin * t); s low, t high half of a byte
    Q3_K   110   hmask 0..32   qs 32..96   scales 96..108   d 108
                 16 sub-blocks of 16: (d * (s - 32)) * (q - 4), third bit of q in hmask
    Q4_K   144   d 0   dmin 2   scales 4..16   qs 16..144
                 8 sub-blocks of 32: (d * s) * q - (dmin * t)
    Q5_K   176   d 0   dmin 2   scales 4..16   qh 16..48   qs 48..176
                 8 sub-blocks of 32: (d * s) * q - (dmin * t), fifth bit of q in qh
    Q6_K   210   ql 0..128   qh 128..192   scales 192..208 (int8)   d 208
                 16 sub-blocks of 16: (d * s) * (q - 32)
    Q8_K   292   d 0 (fp32)   qs 4..260 (int8)   bsums 260..292 (int16 sums of 16 qs)
                 d * q; the sums serve integer dot products and are not needed here
    IQ4_XS 136   d 0   scales_h 2..4   scales_l 4..8   qs 8..136
                 8 sub-blocks of 32: (d * (s - 32)) * CODEBOOK[q]

Packed integers lie in groups: 32 bytes of 4-bit values are 32 elements (low halves), then 32 more
(high halves); 32 bytes of 2-bit values are four times 32 elements, lowest bits first; 32 bytes of
single bits are eight times 32 elements. Exceptions: Q6_K's ql groups are 64 bytes, IQ4_XS's qs
groups 16.

Source: `block_q2_K` ... in ggml-common.h, `dequantize_row_*` in ggml-quants.c.
"""

from __future__ import annotations

import torch

from apr.checkpoint.bit_fields import either, field, half, signed, split_bits
from apr.checkpoint.blocks32 import codebook_levels


def _scaled(q: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None) -> torch.Tensor:
    """q (n * 256 integers), scale and minimum fp32 (n, sub-blocks) → scale * q - minimum."""
    values = q.reshape(*scale.shape, -1).float().mul_(scale.unsqueeze(-1))
    if minimum is not None:
        values.sub_(minimum.unsqueeze(-1))
    return values.view(scale.shape[0], 256)


def q2_k(blocks: torch.Tensor) -> torch.Tensor:
    scales = split_bits(field(blocks, 0, 16), 4).float()
    q = split_bits(field(blocks, 16, 80).view(-1, 2, 32), 2)
    return _scaled(q, half(blocks, 80) * scales[:, 0], half(blocks, 82) * scales[:, 1])


def q3_k(blocks: torch.Tensor) -> torch.Tensor:
    # Scale i: low four bits in half i // 8 of byte i % 8, high two in bit pair i // 4 of 8 + i % 4.
    low = split_bits(field(blocks, 96, 104), 4).view(-1, 16)
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = (field(blocks, 104, 108)[:, None, :] >> pairs[:, None]) & 3
    scales = (low | (high << 4).view(-1, 16)).view(torch.int8) - 32
    # The third bit is stored inverted: where it is clear, 4 is subtracted.
    q = split_bits(field(blocks, 32, 96).view(-1, 2, 32), 2).view(-1, 8, 32)
    third = split_bits(field(blocks, 0, 32), 1)
    third.view(torch.int64).bitwise_left_shift_(2)
    return _scaled(signed(either(q, third), 4), half(blocks, 108) * scales.float(), None)


def _scales_and_minima(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Q4_K's and Q5_K's twelve bytes, uint8 (n, 12) → two fp32 (n, 8) of 6-bit integers.

    Bytes 0..4 hold scales 0..4 in six bits and the top two bits of scales 4..8; bytes 4..8 the
    same of the minima; bytes 8..12 the low four bits of scales (low half) and minima 4..8.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    return scales.float(), minima.float()


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(field(blocks, 4, 16))
    q = split_bits(field(blocks, 16, 144).view(-1, 4, 32), 4)
    return _scaled(q, half(blocks, 0) * scales, half(blocks, 2) * minima)


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(field(blocks, 4, 16))
    q = split_bits(field(blocks, 48, 176).view(-1, 4, 32), 4).view(-1, 8, 32)
    fifth = split_bits(field(blocks, 16, 48), 1)
    fifth.view(torch.int64).bitwise_left_shift_(4)
    return _scaled(either(q, fifth), half(blocks, 0) * scales, half(blocks, 2) * minima)


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    # ql: two groups of 64 bytes (low halves: 64 elements, high halves: 64); qh: two groups of 32.
    low = split_bits(field(blocks, 0, 128).view(-1, 2, 64), 4).view(-1, 8, 32)
    high = split_bits(field(blocks, 128, 192).view(-1, 2, 32), 2).view(-1, 8, 32)
    high.view(torch.int64).bitwise_left_shift_(4)
    scales = field(blocks, 192, 208).view(torch.int8).float()
    return _scaled(signed(either(low, high), 32), half(blocks, 208) * scales, None)


def q8_k(blocks: torch.Tensor) -> torch.Tensor:
    scale = blocks.view(torch.float32)[:, :1]
    return field(blocks, 4, 260).view(torch.int8).float().mul_(scale)


def iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    # Scale i: low four bits in half i % 2 of byte i // 2, high two bits in bit pair i of the u16.
    nibbles = torch.stack(((low := field(blocks, 4, 8)) & 15, low >> 4), dim=2).view(-1, 8)
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = (field(blocks, 2, 4)[:, :, None] >> pairs) & 3
    scales = (nibbles | (high.view(-1, 8) << 4)).view(torch.int8) - 32
    levels = codebook_levels(field(blocks, 8, 136).view(-1, 8, 16))
    return _scaled(levels, half(blocks, 0) * scales.float(), None)
