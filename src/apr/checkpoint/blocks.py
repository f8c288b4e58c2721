"""Dequantization of GGUF blocks: packed bytes to floating point, on any torch device.

Every format equals the reference (the `gguf` package, whose arithmetic is ggml's) bit by bit in
fp32: integers are recovered exactly, then multiplied by the scale and shifted in the same order,
without fused multiply-add. Scales may be anything fp16 can hold; an infinite or NaN scale gives
the infinities and NaNs the reference gives, NaN payload bits excepted.

Work proceeds in chunks that stay in the processor's cache, spread over `chunk_workers` threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from apr.checkpoint import blocks32, blocks256
from apr.checkpoint.chunk_workers import run_chunks
from apr.checkpoint.ggml_types import GGML_TYPES
from apr.common.errors import AprError

# 2 MiB of fp32. With an eighth of that, the cost of starting each torch operation shows; with four
# times that, the chunk no longer stays in the cache.
CHUNK_ELEMENTS = 1 << 19

CACHE_LINE = 64  # torch aligns its tensors to this, and kernels are faster for it

Decoder = Callable[[torch.Tensor], torch.Tensor]

# Type name → function (n, block_bytes) uint8 → (n, block_elements) fp32.
DECODERS: dict[str, Decoder] = {
    "Q4_0": blocks32.q4_0,
    "Q4_1": blocks32.q4_1,
    "Q5_0": blocks32.q5_0,
    "Q5_1": blocks32.q5_1,
    "Q8_0": blocks32.q8_0,
    "IQ4_NL": blocks32.iq4_nl,
    "Q2_K": blocks256.q2_k,
    "Q3_K": blocks256.q3_k,
    "Q4_K": blocks256.q4_k,
    "Q5_K": blocks256.q5_k,
    "Q6_K": blocks256.q6_k,
    "Q8_K": blocks256.q8_k,
    "IQ4_XS": blocks256.iq4_xs,
}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(
    packed: torch.Tensor,
    type_name: str,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn packed blocks into numbers.

    packed: uint8 (..., bytes per row), contiguous, whole blocks; returns dtype (..., elements per
    row) on the same device. Narrower dtypes are the fp32 result rounded to nearest even. out: for
    blocks, dtype, contiguous, with room for all numbers; what is returned is a view of it. Raises
    AprError for a type without a decoder and for rows that are not whole blocks.
    """
    kind = GGML_TYPES.get(type_name)
    if kind is None or (type_name not in DECODERS and type_name not in _PLAIN):
        known = ", ".join([*_PLAIN, *DECODERS])
        raise AprError(f"apr cannot decode GGUF type {type_name}", f"it decodes {known}")
    *outer, row_bytes = packed.shape
    if packed.dtype != torch.uint8 or row_bytes % kind.block_bytes:
        raise AprError(
            f"rows of {row_bytes} {packed.dtype} are not whole {type_name} blocks "
            f"of {kind.block_bytes} bytes"
        )
    shape = (*outer, row_bytes // kind.block_bytes * kind.block_elements)
    if type_name in _PLAIN:
        return packed.contiguous().view(_PLAIN[type_name]).to(dtype).view(shape)
    blocks = packed.reshape(-1, kind.block_bytes)
    numbers = (blocks.shape[0], kind.block_elements)
    if out is None:
        values = _empty(numbers, dtype, packed.device)
    else:
        values = out.view(-1)[: math.prod(numbers)].view(numbers)
    _decode_chunks(DECODERS[type_name], blocks, values)
    return values.view(shape)


def _empty(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """As torch.empty. On the CPU from numpy, which asks Linux for huge pages and torch does not:
    half the time of filling a fresh tensor went into page faults."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return torch.from_numpy(raw[start : start + nbytes]).view(dtype).view(shape)


def _decode_chunks(decode: Decoder, blocks: torch.Tensor, values: torch.Tensor) -> None:
    step = CHUNK_ELEMENTS // values.shape[1]

    def decode_chunk(start: int) -> None:
        values[start : start + step].copy_(decode(blocks[start : start + step]))

    starts = range(0, blocks.shape[0], step)
    if blocks.device.type == "cpu":
        run_chunks(decode_chunk, starts)
    else:
        for start in starts:
            decode_chunk(start)
