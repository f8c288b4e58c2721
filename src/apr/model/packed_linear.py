"""Frozen linear layers whose weights stay narrower than what they are multiplied in: NF4, the
blocks of a GGUF file, or 16-bit floats under fp32.

A weight becomes numbers for the moment of a product, in memory that all layers share, and again in
the backward pass: nothing of it is kept for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from apr.checkpoint import Checkpoint
from apr.checkpoint.blocks import DECODERS, dequantize
from apr.kernels import products
from apr.kernels.nf4 import Nf4, dequantize_nf4, quantize_nf4
from apr.model.families import config_from_checkpoint
from apr.model.load import load_transformer, packed_weight, read_unmapped, read_weight
from apr.model.transformer import Transformer

_SCRATCH: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}


@dataclass(frozen=True)
class GgufBlocks:
    """data: uint8 (out, bytes of a row). kind: the GGUF type. shape: (out, in)."""

    data: torch.Tensor
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def to(self, device: torch.device) -> GgufBlocks:
        return GgufBlocks(self.data.to(device), self.kind, self.shape)


class PackedLinear(nn.Module):
    """y = x W^T + b with a frozen W (out, in).

    packed: as a plain tensor 16-bit floats (out, in), a view of the file where that is mapped.
    zeros: bool (out, in), where W was zero before it was packed; kept as a bit for each number.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        packed: Nf4 | GgufBlocks | torch.Tensor,
        device: torch.device,
        zeros: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.packed, self.device = packed.to(device), device
        self._zeros = None if zeros is None else _bits(zeros).to(device)
        self.out_features, self.in_features = packed.shape
        self.register_parameter("bias", None)

    def numbers(self, dtype: torch.dtype) -> torch.Tensor:
        """W as dtype (out, in); only until another layer's is asked for."""
        count = self.out_features * self.in_features
        place = (dtype, self.device)
        if place not in _SCRATCH or _SCRATCH[place].numel() < count:
            with torch.inference_mode(False):  # training may follow an answer in one run
                _SCRATCH[place] = torch.empty(count, dtype=dtype, device=self.device)
        if isinstance(self.packed, Nf4):
            return dequantize_nf4(self.packed, dtype, _SCRATCH[place])
        if isinstance(self.packed, torch.Tensor):
            return _SCRATCH[place][:count].view(self.packed.shape).copy_(self.packed)
        return dequantize(self.packed.data, self.packed.kind, dtype, _SCRATCH[place])

    def zeros(self, weight: torch.Tensor) -> torch.Tensor:
        """bool (out, in): where W was zero before it was packed, or is now if that is not known.

        weight: `numbers`, in any dtype. A packed form has zeros of its own, of small numbers.
        """
        if self._zeros is None:
            return weight == 0
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.device)
        ones = self._zeros[:, None].bitwise_right_shift(shifts).bitwise_and_(1).view(torch.bool)
        return ones.flatten()[: weight.numel()].view(weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x, self)


def _bits(mask: torch.Tensor) -> torch.Tensor:
    """uint8 (ceil(n / 8),), the first place in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        return products.linear_product(x, layer.numbers(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (dy,) = gradients
        if not ctx.needs_input_grad[0]:
            return None, None
        return products.linear_gradient(dy, ctx.layer.numbers(dy.dtype)), None


def load_packed(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    nf4: bool,
    keep_zeros: bool = False,
) -> Transformer:
    """`load_transformer` with the matrices of all linear layers but the output layer packed.

    nf4: rounded to dtype, then to NF4, one matrix at a time; with keep_zeros the places that were
    zero before are kept beside it. Otherwise the quantized blocks of a GGUF file stay as they are,
    and so do 16-bit floats where dtype is fp32; other floats become dtype.
    """
    cfg = config_from_checkpoint(checkpoint)

    def replace(stored: str, name: str) -> PackedLinear | None:
        if nf4:
            weight = read_unmapped(checkpoint, stored, name, cfg)
            zeros = weight == 0 if keep_zeros else None
            return PackedLinear(quantize_nf4(weight.to(dtype)), device, zeros)
        if _widens(checkpoint, stored, dtype):
            return PackedLinear(read_weight(checkpoint, stored, name, cfg, None), device)
        if not is_packed(checkpoint, stored):
            return None
        data, kind = packed_weight(checkpoint, stored, name, cfg)
        return PackedLinear(GgufBlocks(data, kind, checkpoint.tensors.info(stored).shape), device)

    return load_transformer(checkpoint, dtype, device, replace)


def is_packed(checkpoint: Checkpoint, stored: str) -> bool:
    """Whether a tensor is stored as quantized blocks."""
    return checkpoint.format == "gguf" and checkpoint.tensors.info(stored).dtype in DECODERS


def stays_packed(checkpoint: Checkpoint, stored: str, dtype: torch.dtype) -> bool:
    """Whether `load_packed` without nf4 leaves a matrix as it is stored."""
    return is_packed(checkpoint, stored) or _widens(checkpoint, stored, dtype)


def _widens(checkpoint: Checkpoint, stored: str, dtype: torch.dtype) -> bool:
    """Whether a tensor is stored in 16-bit floats that dtype holds exactly, in twice the memory."""
    return dtype == torch.float32 and checkpoint.tensors.info(stored).dtype in ("BF16", "F16")


def matrix_shapes(model: Transformer) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, and of weights that are packed, by their Hugging Face names."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    packed = ((n, m.packed.shape) for n, m in model.named_modules() if isinstance(m, PackedLinear))
    return shapes | {f"{name}.weight": shape for name, shape in packed}
