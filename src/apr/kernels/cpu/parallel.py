"""Compiled loops on torch's own worker threads.

Between matrix products torch's OpenMP workers keep spinning for the next one; a second pool would
fight with them for the cores. So the loops run on the same workers, through the OpenMP library that
torch has loaded. Where that is not GNU's, threads of our own take their place.

A body is a C function of one address: int64 words, the first a counter that the workers draw chunk
numbers from, the second how many chunks there are, the rest whatever the body reads.
"""

from __future__ import annotations

import ctypes
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from apr.kernels.cpu.intrinsics import atomic_add

WORDS = 32  # of a body's argument
BODY = types.void(types.CPointer(types.int64))


def run_chunks(body: Any, chunks: int, *arguments: int | float | torch.Tensor | np.ndarray) -> None:
    """Let the workers take chunks 0 .. chunks - 1 of a body, and wait for all.

    arguments: words of the body from the third on: integers, fp32 numbers, addresses of contiguous
    tensors or arrays.
    """
    words = [0, chunks, *map(_word, arguments)]
    packed = (ctypes.c_int64 * WORDS)(*words)
    threads = min(torch.get_num_threads(), chunks)
    if threads < 2:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body.address)(ctypes.addressof(packed))
        return
    openmp = _openmp()
    if openmp is not None:
        openmp(body.address, ctypes.addressof(packed), threads, 0)
        return
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body.address)
    list(_pool().map(call, [ctypes.addressof(packed)] * threads))


def _word(value: int | float | torch.Tensor | np.ndarray) -> int:
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, float):
        return struct.unpack("<I", struct.pack("<f", value))[0]
    return value


@cache
def _openmp() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the library torch uses, or None."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or not torch.backends.openmp.is_available():
        return None
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    ours = [path for path in paths if str(Path(torch.__file__).parent.parent) in path]
    for path in ours or sorted(paths):
        function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if function is not None:
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function
    return None


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), "kernels")


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def as_float(typingctx, word):
    """The fp32 number in the lower half of a word."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), codegen


@njit(nogil=True)
def bits_at(address, count):
    """uint16 (count,): bf16 bits at an address."""
    return carray(_pointer(address), (count,), np.uint16)


@njit(nogil=True)
def bytes_at(address, count):
    return carray(_pointer(address), (count,), np.uint8)


@njit(nogil=True)
def floats_at(address, count):
    return carray(_pointer(address), (count,), np.float32)


@njit(nogil=True)
def longs_at(address, count):
    return carray(_pointer(address), (count,), np.int64)


@njit(nogil=True)
def next_chunk(words):
    """The number of a chunk nobody has taken; not below words[1] when there is none."""
    return atomic_add(words.ctypes.data, 1)
