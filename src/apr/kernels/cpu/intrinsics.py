"""What numba does not offer: small pieces of LLVM (bit casts, atomics, a barrier), and what the
machine that it compiles for can do, by feature test and never by name.

numba's own settings are honoured: `NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma` compiles,
caches and selects kernels for that machine, which is how the portable path is tested.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


@intrinsic
def float_bits(typingctx, value):
    """float32 -> its bits as uint32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), codegen


@intrinsic
def bits_float(typingctx, value):
    """uint32 bits -> float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def load_int64(typingctx, address):
    """The int64 at `address`."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], _I64.as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def call_widener(typingctx, function, panel, first, pairs, out):
    """Call the C function at an address with four int64."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 4)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def atomic_add(typingctx, address, amount):
    """Sequentially consistent fetch-and-add on the int64 at `address`; returns the old value."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, address):
    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        builder.store_atomic(args[1], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


# Linux can put a thread to sleep until a word of memory changes (futex(2)). Elsewhere a thread that
# waits gives way, and may do so again and again.
_FUTEX = {"x86_64": 202, "AMD64": 202, "aarch64": 98}.get(platform.machine(), 0)
_FUTEX = _FUTEX if sys.platform == "linux" else 0
_WAIT, _WAKE = 128, 129  # of this process' threads
_ALL = (1 << 31) - 1


def _call(builder: Any, name: str, arguments: Sequence[Any], variadic: bool = False) -> None:
    """A call of a C library function that takes and returns 64-bit integers."""
    function = builder.module.globals.get(name)
    if function is None:
        kinds = [] if not arguments else [_I64]
        kind = ir.FunctionType(_I64, kinds, var_arg=variadic)
        function = ir.Function(builder.module, kind, name)
    builder.call(function, arguments)


@intrinsic
def sleep_while(typingctx, address, value):
    """Let another thread have the processor, on Linux until woken if the lower half of the int64
    at `address` is that of `value`.
    """

    def codegen(context, builder, signature, args):
        if _FUTEX:
            numbers = [ir.Constant(_I64, n) for n in (_FUTEX, _WAIT, 0)]
            word = builder.and_(args[1], ir.Constant(_I64, 0xFFFFFFFF))
            call, wait, forever = numbers
            _call(builder, "syscall", [call, args[0], wait, word, forever], variadic=True)
        else:
            _call(builder, "sched_yield", [])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def wake(typingctx, address):
    """Wake all that sleep at `address`."""

    def codegen(context, builder, signature, args):
        if _FUTEX:
            call, how, count = (ir.Constant(_I64, n) for n in (_FUTEX, _WAKE, _ALL))
            _call(builder, "syscall", [call, args[0], how, count], variadic=True)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


SPINS_BEFORE_SLEEP = 4000


@njit(nogil=True, cache=True)
def barrier(state, threads):
    """Wait until all `threads` have come here. state: address of three int64 (arrived, generation,
    sleeping).

    Spins first, because the other threads are usually microseconds away, then sleeps, so that a
    machine with more runnable threads than cores still makes progress.
    """
    if threads == 1:
        return
    generation = atomic_load(state + 8)
    if atomic_add(state, 1) == threads - 1:
        atomic_store(state, 0)
        atomic_add(state + 8, 1)
        if atomic_add(state + 16, 0) > 0:
            wake(state + 8)
        return
    for _ in range(SPINS_BEFORE_SLEEP):
        if atomic_load(state + 8) != generation:
            return
    atomic_add(state + 16, 1)
    while atomic_load(state + 8) == generation:
        sleep_while(state + 8, generation)
    atomic_add(state + 16, -1)


@njit(nogil=True, cache=True)
def to_bf16(value):
    """float32 -> bf16 bits (uint16), round to nearest even. NaN is not expected here."""
    bits = float_bits(value)
    return (
        (bits + types.uint32(0x7FFF) + ((bits >> types.uint32(16)) & types.uint32(1)))
        >> types.uint32(16)
    ) & types.uint32(0xFFFF)


@njit(nogil=True, cache=True)
def from_bf16(bits):
    """bf16 bits (uint16) -> float32, exact."""
    return bits_float(types.uint32(bits) << types.uint32(16))


def target_features() -> frozenset[str]:
    """LLVM names of the features that compiled code may use, e.g. {"avx2", "avx512bf16"}."""
    name, features = getattr(config, "CPU_NAME", None), getattr(config, "CPU_FEATURES", None)
    if name is not None or features is not None:
        listed = (features or "").split(",")
        return frozenset(item[1:] for item in listed if item.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


HAS_BF16_DOT = {"avx512bf16", "avx512f"} <= target_features()

# Micro-kernel shape: accumulators must fit the registers. With 32 512-bit registers, 6 rows by
# 4 vectors; without, vectors of 16 lanes are split by LLVM and 4 of them still fit.
MAX_ROWS = 6 if HAS_BF16_DOT else 4


def vectors_for(rows: int) -> int:
    """Vectors of 16 columns that a micro-kernel of `rows` rows covers: 1, 2 or 4.

    As many as registers hold, so that enough sums are under way to hide each one's latency.
    """
    if HAS_BF16_DOT:
        return 4
    return {1: 4, 2: 2}.get(rows, 1)
