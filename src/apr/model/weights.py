"""A matrix however it is stored, and the two modules that hold one.

`Dense`: numbers, perhaps a view of the mapped file. `Blocks`: a GGUF file's quantized blocks.
`Nf4`: 4-bit floats (QLoRA). Each has `shape` (out, in), `nbytes`, `device`, `numbers(dtype)` and
`to(device)`. Training, the torch runner and the compiled runner read the same objects;
`apr.kernels.ops` chooses how one is multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from apr.checkpoint.blocks import dequantize
from apr.kernels import ops
from apr.kernels.nf4 import Nf4


@dataclass(frozen=True)
class Dense:
    """tensor: floats (out, in)."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, device: torch.device) -> Dense:
        return Dense(self.tensor.to(device))

    def numbers(self, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
        """(out, in) in dtype. out: of dtype, with room for all; the result is a view of it."""
        if out is None:
            return self.tensor.to(dtype)
        return out.view(-1)[: self.tensor.numel()].view(self.tensor.shape).copy_(self.tensor)

    def rows(self, which: torch.Tensor | slice) -> Dense:
        return Dense(self.tensor[which])


@dataclass(frozen=True)
class Blocks:
    """data: uint8 (out, bytes of a row). kind: the GGUF type. shape: (out, in)."""

    data: torch.Tensor
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device) -> Blocks:
        return Blocks(self.data.to(device), self.kind, self.shape)

    def numbers(self, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
        """(out, in) in dtype. out: of dtype, with room for all; the result is a view of it."""
        return dequantize(self.data, self.kind, dtype, out)

    def rows(self, which: torch.Tensor | slice) -> Blocks:
        data = self.data[which]
        return Blocks(data, self.kind, (len(data), *self.shape[1:]))


Weight = Dense | Blocks | Nf4


class Linear(nn.Linear):
    """y = x W^T + b. W (out, in) is the parameter `weight`, or else `frozen`: a matrix that stays
    as it is stored and becomes numbers for the moment of a product, and again in the backward pass.
    """

    frozen: Weight | None = None
    _zeros: torch.Tensor | None = None

    @property
    def matrix(self) -> torch.Tensor | Weight:
        return self.weight if self.frozen is None else self.frozen

    def freeze(self, matrix: Weight, dtype: torch.dtype, zeros: torch.Tensor | None = None) -> None:
        """Put a matrix in the place of the parameter; dtype is that of what it multiplies.

        zeros: bool (out, in), where W was zero before it was packed; kept as a bit for each number.
        """
        self.register_parameter("weight", None)
        self.frozen = matrix
        self._zeros = None if zeros is None else _bits(zeros).to(matrix.device)

    def numbers(self, dtype: torch.dtype) -> torch.Tensor:
        """W as dtype (out, in); of a frozen one only until another layer's is asked for."""
        return self.weight.to(dtype) if self.frozen is None else ops.numbers(self.frozen, dtype)

    def zeros(self, weight: torch.Tensor) -> torch.Tensor:
        """bool (out, in): where W was zero before it was packed, or is now if that is not known.

        weight: `numbers`, in any dtype. A packed form has zeros of its own, of small numbers.
        """
        if self._zeros is None:
            return weight == 0
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self._zeros.device)
        ones = self._zeros[:, None].bitwise_right_shift(shifts).bitwise_and_(1).view(torch.bool)
        return ones.flatten()[: weight.numel()].view(weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, self.matrix, self.bias)


def _bits(mask: torch.Tensor) -> torch.Tensor:
    """uint8 (ceil(n / 8),), the first place in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


class Embedding(nn.Module):
    """Rows of a table (V, C), which may be an output layer as well: the parameter `weight`, or else
    `frozen`, whose rows become numbers of type `dtype` when they are looked up.
    """

    frozen: Dense | Blocks | None = None

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        table = torch.empty(count, width)
        if table.device.type != "meta":  # there, drawing costs an import of 1.5 s and does nothing
            nn.init.normal_(table)
        self.weight = nn.Parameter(table)
        self.num_embeddings, self.embedding_dim = count, width

    @property
    def matrix(self) -> torch.Tensor | Dense | Blocks:
        return self.weight if self.frozen is None else self.frozen

    def freeze(self, matrix: Weight, dtype: torch.dtype, zeros: torch.Tensor | None = None) -> None:
        """Put a matrix in the place of the parameter; dtype is that of what is looked up."""
        assert zeros is None and isinstance(matrix, Dense | Blocks)
        self.register_parameter("weight", None)
        self.frozen, self._dtype = matrix, dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of what is looked up."""
        return self.weight.dtype if self.frozen is None else self._dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.frozen is None:
            return F.embedding(ids, self.weight)
        found = self.frozen.rows(ids.flatten()).numbers(self._dtype)
        return found.view(*ids.shape, self.embedding_dim)


def matrix_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, and of frozen matrices, by their Hugging Face names."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, Linear | Embedding) and module.frozen is not None:
            shapes[f"{name}.weight"] = module.frozen.shape
    return shapes
