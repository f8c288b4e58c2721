"""Taking packed integers apart, eight bytes at a time."""

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
