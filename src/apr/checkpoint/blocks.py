"""Dequantization of GGUF blocks: packed bytes to floating point, on any torch device.

Every format equals the reference (the `gguf` package, whose arithmetic is ggml's) bit by bit in
fp32: integers are recovered exactly, then multiplied by the scale and shifted in the same order,
without fused multiply-add. Scales may be anything fp16 can hold; an infinite or NaN scale gives
the infinities and NaNs the reference gives, NaN payload bits excepted.

Work proceeds in chunks that stay in the processor's cache, spread over threads that each run torch
operations alone. torch would spread every single operation over all threads and wait for the
slowest. With a dozen short operations a chunk, any other program on the machine makes each of those
waits as long as a scheduler slice: dequantization was seen to take fifty times longer that way.
Here threads meet only once, when all chunks are done.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from apr.checkpoint import block_formats as formats
from apr.checkpoint.dtypes import FLOATS
from apr.checkpoint.gguf_header import GGML_TYPES
from apr.common.errors import AprError

# 2 MiB of fp32. With an eighth of that, the cost of starting each torch operation shows; with four
# times that, the chunk no longer stays in the cache.
CHUNK_ELEMENTS = 1 << 19

# Beyond this, starting operations (which needs the interpreter lock) is the limit.
MAX_WORKERS = 8

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0

CACHE_LINE = 64  # torch aligns its tensors to this, and kernels are faster for it

Decoder = Callable[[torch.Tensor], torch.Tensor]

# Type name → function (n, block_bytes) uint8 → (n, block_elements) fp32.
DECODERS: dict[str, Decoder] = {
    "Q4_0": formats.q4_0,
    "Q4_1": formats.q4_1,
    "Q5_0": formats.q5_0,
    "Q5_1": formats.q5_1,
    "Q8_0": formats.q8_0,
    "IQ4_NL": formats.iq4_nl,
    "Q2_K": formats.q2_k,
    "Q3_K": formats.q3_k,
    "Q4_K": formats.q4_k,
    "Q5_K": formats.q5_k,
    "Q6_K": formats.q6_k,
    "Q8_K": formats.q8_k,
    "IQ4_XS": formats.iq4_xs,
}


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
    if kind is None or (type_name not in DECODERS and type_name not in FLOATS):
        known = ", ".join([*FLOATS, *DECODERS])
        raise AprError(f"apr cannot decode GGUF type {type_name}", f"it decodes {known}")
    *outer, row_bytes = packed.shape
    if packed.dtype != torch.uint8 or row_bytes % kind.block_bytes:
        raise AprError(
            f"rows of {row_bytes} {packed.dtype} are not whole {type_name} blocks "
            f"of {kind.block_bytes} bytes"
        )
    shape = (*outer, row_bytes // kind.block_bytes * kind.block_elements)
    if type_name in FLOATS:
        return packed.contiguous().view(FLOATS[type_name]).to(dtype).view(shape)
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


def run_chunks(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call work(start) for every start, in any order, on at most torch's number of threads.

    Exceptions of `work` are raised here. Other uses of torch keep their number of threads.
    """
    threads = min(torch.get_num_threads(), MAX_WORKERS)
    if threads == 1:
        for start in starts:
            work(start)
        return
    pool = _workers(threads)
    remaining = iter(starts)
    claim = threading.Lock()

    # A thread has its own inference mode, and may not write to the tensors of another's.
    inference = torch.is_inference_mode_enabled()

    def drain() -> None:
        with torch.inference_mode(inference):
            while True:
                with claim:
                    start = next(remaining, None)
                if start is None:
                    return
                work(start)

    for done in [pool.submit(drain) for _ in range(threads)]:
        done.result()


def _workers(threads: int) -> ThreadPoolExecutor:
    """The pool, with at least so many threads, all started and set to one torch thread each."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < threads:
            _pool = ThreadPoolExecutor(
                threads, "apr-chunks", initializer=torch.set_num_threads, initargs=(1,)
            )
            _pool_size = threads
            all_started = threading.Barrier(threads + 1)
            for _ in range(threads):
                _pool.submit(all_started.wait)
            all_started.wait()
            # torch.set_num_threads holds for the calling thread, and for threads that start later.
            # The initializers above set the latter to one; this sets it back.
            torch.set_num_threads(torch.get_num_threads())
        return _pool


def _forget_pool() -> None:
    """A forked child has the pool object but none of its threads."""
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)
