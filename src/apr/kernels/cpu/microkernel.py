"""The one inner loop: C[mr, 64] (+)= A[mr, K] @ panel[K, 64], bf16 products summed in fp32.

A *panel* holds 64 output columns of a weight matrix (or 64 cached keys) as pairs along K:

    element (k, n) of the panel stands at ((k // 2) * 64 + n) * 2 + k % 2

so one 64-byte load feeds 16 columns with two consecutive k each, which is what the AVX-512 BF16
dot product (`vdpbf16ps`) multiplies with a broadcast pair of A. Machines without it get the same
loop with each pair widened to fp32 and two fused multiply-adds. The panel itself is read in order,
which the processor's own prefetcher follows; the `prefetch` argument is for the panel after it.

The loop is emitted as LLVM IR because neither the dot product nor register blocking can be
expressed in plain loops. All arguments are addresses and byte strides.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr.kernels.cpu.intrinsics import HAS_BF16_DOT, vectors_for

PANEL = 64
PAIR_BYTES = 4 * PANEL  # between two k pairs of a panel
LANES = 16
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_F32V = ir.VectorType(ir.FloatType(), LANES)
_I32V = ir.VectorType(_I32, LANES)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not model."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BF16V = ir.VectorType(_BFloat(), 2 * LANES)


def _declare(module: ir.Module, name: str, result: ir.Type, arguments: list[ir.Type]) -> Any:
    known = module.globals.get(name)
    return known or ir.Function(module, ir.FunctionType(result, arguments), name)


def _const(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


class _Loop:
    """Emits one micro-kernel into `function` (rows x vectors accumulators held in registers)."""

    def __init__(self, function: ir.Function, rows: int, vectors: int) -> None:
        self.function, self.rows, self.vectors = function, rows, vectors
        self.module = function.module
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))

    def _at(self, address: Any, kind: ir.Type) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def _offset(self, address: Any, amount: int) -> Any:
        return self.builder.add(address, _const(amount)) if amount else address

    def _cells(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(self.rows) for j in range(self.vectors)]

    def emit(self) -> None:
        b = self.builder
        a, lda, panel, pairs, c, ldc, accumulate, prefetch = self.function.args
        a_rows = [b.add(a, b.mul(lda, _const(i))) for i in range(self.rows)]
        c_rows = [b.add(c, b.mul(ldc, _const(i))) for i in range(self.rows)]
        start = self._start_values(c_rows, accumulate)
        before = b.block
        loop = self.function.append_basic_block("loop")
        done = self.function.append_basic_block("done")
        b.branch(loop)

        b.position_at_end(loop)
        k, b_at, ahead = b.phi(_I64), b.phi(_I64), b.phi(_I64)
        sums = {cell: b.phi(_F32V) for cell in self._cells()}
        for phi, first in ((k, _const(0)), (b_at, panel), (ahead, prefetch)):
            phi.add_incoming(first, before)
        for cell in self._cells():
            sums[cell].add_incoming(start[cell], before)
        columns = [
            b.load(self._at(self._offset(b_at, 64 * j), _I32V), align=64)
            for j in range(self.vectors)
        ]
        self._prefetch(ahead)
        new = self._products(sums, columns, a_rows, b.mul(k, _const(4)))
        next_k = b.add(k, _const(1))
        for phi, value in (
            (k, next_k),
            (b_at, b.add(b_at, _const(4 * PANEL))),
            (ahead, b.add(ahead, _const(64))),
        ):
            phi.add_incoming(value, loop)
        for cell in self._cells():
            sums[cell].add_incoming(new[cell], loop)
        b.cbranch(b.icmp_signed("<", next_k, pairs), loop, done)

        b.position_at_end(done)
        for i, j in self._cells():
            b.store(new[i, j], self._at(self._offset(c_rows[i], 64 * j), _F32V), align=4)
        b.ret_void()

    def _start_values(self, c_rows: list[Any], accumulate: Any) -> dict[tuple[int, int], Any]:
        b = self.builder
        entry = b.block
        load = self.function.append_basic_block("load")
        ready = self.function.append_basic_block("ready")
        b.cbranch(b.icmp_signed("!=", accumulate, _const(0)), load, ready)
        b.position_at_end(load)
        loaded = {
            (i, j): b.load(self._at(self._offset(c_rows[i], 64 * j), _F32V), align=4)
            for i, j in self._cells()
        }
        b.branch(ready)
        b.position_at_end(ready)
        start = {}
        for cell in self._cells():
            phi = b.phi(_F32V)
            phi.add_incoming(ir.Constant(_F32V, [0.0] * LANES), entry)
            phi.add_incoming(loaded[cell], load)
            start[cell] = phi
        return start

    def _prefetch(self, ahead: Any) -> None:
        """One line for each k, into the second-level cache."""
        b = self.builder
        pointer = ir.IntType(8).as_pointer()
        prefetch = _declare(
            self.module, "llvm.prefetch.p0", ir.VoidType(), [pointer, _I32, _I32, _I32]
        )
        # (read, locality 2 of 0..3, data)
        flags = [ir.Constant(_I32, value) for value in (0, 2, 1)]
        b.call(prefetch, [b.inttoptr(ahead, pointer), *flags])

    def _products(
        self, sums: dict[tuple[int, int], Any], columns: list[Any], a_rows: list[Any], k_bytes: Any
    ) -> dict[tuple[int, int], Any]:
        b = self.builder
        undefined = ir.Constant(_I32V, ir.Undefined)
        new = {}
        for i, row in enumerate(a_rows):
            pair = b.load(self._at(b.add(row, k_bytes), _I32), align=4)
            wide = b.insert_element(undefined, pair, ir.Constant(_I32, 0))
            wide = b.shuffle_vector(wide, undefined, ir.Constant(_I32V, [0] * LANES))
            for j, column in enumerate(columns):
                new[i, j] = self._dot(sums[i, j], column, wide)
        return new

    def _dot(self, total: Any, column: Any, pair: Any) -> Any:
        b = self.builder
        if HAS_BF16_DOT:
            dot = _declare(
                self.module,
                "llvm.x86.avx512bf16.dpbf16ps.512",
                _F32V,
                [_F32V, _BF16V, _BF16V],
            )
            return b.call(dot, [total, b.bitcast(column, _BF16V), b.bitcast(pair, _BF16V)])
        fma = _declare(self.module, f"llvm.fma.v{LANES}f32", _F32V, [_F32V] * 3)
        shift = ir.Constant(_I32V, [16] * LANES)
        mask = ir.Constant(_I32V, [0xFFFF0000] * LANES)
        # bf16 is the upper half of fp32: the odd element is masked out, the even one shifted up.
        for widen in (lambda v: b.shl(v, shift), lambda v: b.and_(v, mask)):
            left, right = b.bitcast(widen(column), _F32V), b.bitcast(widen(pair), _F32V)
            total = b.call(fma, [left, right, total])
        return total


def _micro_kernel(rows: int) -> Any:
    @intrinsic
    def kernel(typingctx, a, lda, panel, pairs, c, ldc, accumulate, prefetch):
        signature = types.void(*[types.int64] * 8)

        def codegen(context, builder, signature, args):
            name = f"apr_micro_{rows}"
            function = builder.module.globals.get(name)
            if function is None:
                kind = ir.FunctionType(ir.VoidType(), [_I64] * 8)
                function = ir.Function(builder.module, kind, name)
                function.linkage = "internal"
                function.attributes.add("noinline")
                _Loop(function, rows, vectors_for(rows)).emit()
            builder.call(function, args)
            return context.get_dummy_value()

        return signature, codegen

    return kernel


micro_1 = _micro_kernel(1)
micro_2 = _micro_kernel(2)
micro_3 = _micro_kernel(3)
micro_4 = _micro_kernel(4)
micro_5 = _micro_kernel(5)
micro_6 = _micro_kernel(6)
