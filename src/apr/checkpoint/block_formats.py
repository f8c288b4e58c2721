"""The GGUF block formats: packed bytes of whole blocks to fp32.

Each function: uint8 (n, bytes) → fp32 (n, elements of a block). Bytes of a block, by offset (d
scale, m minimum, dmin scale of the minima, fp16 unless said; qs packed integers; s, t the scales of
a sub-block). Formats of 32 elements:

Bytes of a block, by offset (d scale, m minimum, both fp16; qs packed integers):

    Q4_0    18   d 0   qs 2..18                    d * (q - 8)
    Q4_1    20   d 0   m 2   qs 4..20              d * q + m
    Q5_0    22   d 0   qh 2..6   qs 6..22          d * (q - 16)
    Q5_1    24   d 0   m 2   qh 4..8   qs 8..24    d * q + m
    Q8_0    34   d 0   qs 2..34 (int8)             d * q
    IQ4_NL  18   d 0   qs 2..18                    d * CODEBOOK[q]

Formats of 256 elements:

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

Source: `block_q4_0`, `block_q2_K` ... in ggml-common.h, `dequantize_row_*` in ggml-quants.c.
"""

from __future__ import annotations

import functools

import torch

_LANE_MASK = {4: 0x0F0F0F0F0F0F0F0F, 2: 0x0303030303030303, 1: 0x0101010101010101}


def field(blocks: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Bytes [start, stop) of every block: uint8 (n, block_bytes) → contiguous (n, stop - start).

    Copies in 16-bit units: block sizes and offsets of the formats here are even.
    """
    return _copy(blocks.view(torch.int16)[:, start // 2 : stop // 2]).view(torch.uint8)


def _copy(part: torch.Tensor) -> torch.Tensor:
    # Not contiguous(), which returns a single row as it is, at an offset no wider view accepts.
    return part.clone(memory_format=torch.contiguous_format)


def half(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    """The fp16 number at a byte offset of every block, as fp32 (n, 1)."""
    index = offset // 2
    return blocks.view(torch.float16)[:, index : index + 1].float()


def split_bits(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Uint8 (..., k), k divisible by 8 → uint8 (..., 8 // bits, k).

    Row j holds bits [bits * j, bits * (j + 1)) of each byte.
    """
    pieces = 8 // bits
    shape = (*packed.shape[:-1], pieces, packed.shape[-1])
    parts = torch.empty(shape, dtype=torch.uint8, device=packed.device)
    source, lanes = packed.view(torch.int64), parts.view(torch.int64)
    for piece in range(pieces):
        # Bits shifted in from the neighbouring byte fall outside the mask.
        shifted = source >> (bits * piece) if piece else source
        torch.bitwise_and(shifted, _LANE_MASK[bits], out=lanes[..., piece, :])
    return parts


@functools.lru_cache(maxsize=8)
def _bit_rows(value: int, device: torch.device) -> torch.Tensor:
    """int64 (256,): entry b is eight bytes, byte j being `value` where bit j of b is set."""
    byte = torch.arange(256, dtype=torch.int32)[:, None]
    bit = torch.arange(8, dtype=torch.int32)[None, :]
    rows = (((byte >> bit) & 1) * value).to(torch.uint8)
    return rows.view(torch.int64).view(256).to(device)


def spread_bits(packed: torch.Tensor, value: int) -> torch.Tensor:
    """Uint8 (n, k) → uint8 (n, 8k): element 8i + j is `value` where bit j of byte i is set."""
    table = _bit_rows(value, packed.device)
    rows = table.index_select(0, packed.reshape(-1).int())
    return rows.view(packed.shape).view(torch.uint8)


def either(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """low | high, uint8 of one shape (last dimension divisible by 8), in place in low."""
    low.view(torch.int64).bitwise_or_(high.view(torch.int64))
    return low


def signed(values: torch.Tensor, offset: int) -> torch.Tensor:
    """Uint8 values - offset as int8, in place."""
    return values.view(torch.int8).sub_(offset)


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
