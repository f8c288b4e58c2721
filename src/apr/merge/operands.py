"""The inputs of one merged tensor, read block by block, and the compiled loops over them.

A method (methods.py) first looks at all blocks as often as it needs to (a Gram matrix, a threshold)
and then returns a `Combine`, which fills any block of the result. So a tensor is merged in memory
that does not depend on its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import numpy as np
import torch

from apr.common.errors import AprError
from apr.kernels.cpu import merging

KINDS = {torch.bfloat16: merging.BF16, torch.float16: merging.FP16, torch.float32: merging.FP32}
BLOCK_ELEMENTS = 1 << 19
# Addresses and kinds of the models, address and kind of the base: how kernels take a block.
Inputs = tuple[np.ndarray, np.ndarray, int, int]


class Reader(Protocol):
    """One model's tensor. label: how errors name it."""

    label: str

    def __call__(self, start: int, end: int) -> torch.Tensor:
        """Elements start .. end of the flattened tensor: 1-D, contiguous, bf16, fp16 or fp32."""
        ...


# Fills a flat output tensor (bf16, fp16 or fp32) with elements start .. end of the result.
Combine = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True)
class Operands:
    """One tensor, in all models that are merged.

    name: of the result, which keys the random numbers. base: what deltas are taken from, for
    methods that work on deltas; not one of models then. seed: of random masks.
    """

    name: str
    shape: tuple[int, ...]
    models: tuple[Reader, ...]
    base: Reader | None = None
    seed: int = 0
    block_elements: int = BLOCK_ELEMENTS

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def width(self) -> int:
        """Elements of a row: the last dimension (all of a vector)."""
        return self.shape[-1] if self.shape else 1

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of the blocks, whole rows each."""
        rows = max(1, self.block_elements // max(1, self.width))
        step = rows * max(1, self.width)
        return tuple((i, min(i + step, self.count)) for i in range(0, self.count, step))

    def key(self, model: int) -> np.uint64:
        """The random key of one model's mask: from seed, tensor name and place of the model."""
        text = f"{self.seed}\0{self.name}\0{model}".encode()
        return np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))

    def fp32(self, reader: Reader, start: int, end: int) -> torch.Tensor:
        """A block in fp32, (rows, width). AprError when it holds NaN or infinity."""
        block = reader(start, end).float()
        if not torch.isfinite(block).all():
            raise not_finite(reader, self.name)
        return block.view(-1, max(1, self.width))

    def deltas(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(base, (models, rows, width) deltas) of a block, in fp32."""
        assert self.base is not None
        base = self.fp32(self.base, start, end)
        return base, torch.stack([self.fp32(m, start, end) - base for m in self.models])


def not_finite(reader: Reader, name: str) -> AprError:
    return AprError(
        f"{reader.label}: tensor {name} holds NaN or infinity",
        "this model is damaged: leave it out",
    )


def check_finite(block: torch.Tensor, name: str) -> None:
    """Raise AprError for a merged block that holds NaN or infinity."""
    # The sum is quick, and not finite where an element is not.
    if torch.isfinite(block.sum()) or torch.isfinite(block).all():
        return
    if block.dtype is torch.float16:
        raise AprError(
            f"tensor {name} has values that float16 cannot hold (above 65504)",
            "choose `dtype` bf16 or fp32",
        )
    raise _too_large(name)


def _too_large(name: str) -> AprError:
    return AprError(
        f"tensor {name} would hold NaN or infinity: its numbers or the weights are too large",
        "choose smaller weights, or leave out the model with these numbers",
    )


class RawBlock:
    """Blocks of several readers as the addresses compiled code takes; keeps them alive."""

    def __init__(self, x: Operands, readers: Sequence[Reader], start: int, end: int) -> None:
        self._name, self._readers = x.name, readers
        self._tensors = [reader(start, end) for reader in readers]
        self.addresses = np.array([t.data_ptr() for t in self._tensors], np.int64)
        self.kinds = np.array([KINDS[t.dtype] for t in self._tensors], np.int64)
        self.count = end - start

    def check(self, bad: int) -> None:
        """Raise for the index of a reader a kernel found not finite; -1 is none."""
        if bad >= 0:
            raise not_finite(self._readers[bad], self._name)


def models_and_base(x: Operands, start: int, end: int) -> tuple[RawBlock, Inputs]:
    """The block, and (addresses, kinds, base address, base kind) of models and base."""
    assert x.base is not None
    raw = RawBlock(x, [*x.models, x.base], start, end)
    return raw, (raw.addresses[:-1], raw.kinds[:-1], int(raw.addresses[-1]), int(raw.kinds[-1]))


def output_arrays(out: torch.Tensor) -> tuple[np.ndarray, np.ndarray, int]:
    """(16-bit array, fp32 array, kind) of an output block; the array not meant is empty."""
    kind = KINDS[out.dtype]
    if kind == merging.FP32:
        return np.empty(0, np.uint16), out.numpy(), kind
    return out.view(torch.uint16).numpy(), np.empty(0, np.float32), kind


def gram_matrix(x: Operands) -> np.ndarray:
    """Inner products of the models (of their deltas, if there is a base), (M, M) fp64.

    Raises AprError where they are too large for fp32.
    """
    out = np.zeros((len(x.models), len(x.models)))
    for start, end in x.blocks:
        if x.base is None:
            raw = RawBlock(x, x.models, start, end)
            raw.check(merging.gram(raw.addresses, raw.kinds, 0, 0, raw.count, out))
        else:
            raw, inputs = models_and_base(x, start, end)
            raw.check(merging.gram(*inputs, raw.count, out))
    if not np.isfinite(out).all():
        raise _too_large(x.name)
    return out


def from_fp32(x: Operands, function: Callable[[int, int], torch.Tensor]) -> Combine:
    """A Combine from a function that gives fp32 blocks."""

    def combine(start: int, end: int, out: torch.Tensor) -> None:
        out.copy_(function(start, end).reshape(-1))

    return combine


def in_memory(tensor: torch.Tensor, label: str = "tensor") -> Reader:
    """A Reader over a tensor in memory."""
    flat = tensor.detach().contiguous().view(-1)

    class _Memory:
        def __init__(self) -> None:
            self.label = label

        def __call__(self, start: int, end: int) -> torch.Tensor:
            return flat[start:end]

    return _Memory()
