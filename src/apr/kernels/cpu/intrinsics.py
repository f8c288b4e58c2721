"""Small pieces of LLVM that numba does not offer: bit casts, atomics, a spin barrier."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
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


@intrinsic
def give_way(typingctx):
    """Let another thread have the processor (POSIX `sched_yield`)."""

    def codegen(context, builder, signature, args):
        module: Any = builder.module
        function = module.globals.get("sched_yield")
        if function is None:
            function = ir.Function(module, ir.FunctionType(_I32, []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


SPINS_BEFORE_YIELD = 4000


@njit(nogil=True, cache=True)
def barrier(state, threads):
    """Wait until all `threads` have come here. state: address of two int64 (arrived, generation).

    Spins first, because the other threads are usually microseconds away, then gives way, so that a
    machine with more runnable threads than cores still makes progress.
    """
    if threads == 1:
        return
    generation = atomic_load(state + 8)
    if atomic_add(state, 1) == threads - 1:
        atomic_store(state, 0)
        atomic_store(state + 8, generation + 1)
        return
    spins = 0
    while atomic_load(state + 8) == generation:
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            give_way()


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
