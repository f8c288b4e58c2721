"""The model that training begins with, in the form each method keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from apr.checkpoint import Checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.common.errors import UsageError
from apr.kernels.nf4 import nf4_bytes
from apr.model.config import ModelConfig
from apr.model.load import Form, checked_names, is_packed, load_transformer, stays_packed
from apr.model.transformer import Transformer


@dataclass(frozen=True)
class BaseSize:
    """parameters: how many. weights: bytes that stay. scratch: bytes of the widest packed matrix as
    numbers, which all packed layers share.
    """

    parameters: int
    weights: int
    scratch: int


def check_base(checkpoint: Checkpoint, config: ModelConfig, method: str) -> None:
    """Raises UsageError where a method cannot train this model."""
    if method != "qlora":
        return
    shapes, stored = checked_names(checkpoint, config)
    matrices = (stored[name] for name in shapes if name.endswith("_proj.weight"))
    if any(is_packed(checkpoint, name) for name in matrices):
        raise UsageError(
            f"`method` qlora: {checkpoint.path} is quantized already",
            "`method` lora trains on it as it is",
        )


def training_device() -> torch.device:
    """Where runs train: a CUDA GPU, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(
    checkpoint: Checkpoint,
    method: str,
    dtype: torch.dtype,
    device: torch.device,
    keep_zeros: bool = False,
) -> Transformer:
    """qlora: linear layers in NF4. lora: a GGUF file's quantized blocks stay, and 16-bit floats
    under fp32. full: numbers.

    keep_zeros: what is zero before it becomes NF4 is remembered.
    """
    forms: dict[str, Form] = {"full": "numbers", "lora": "stored", "qlora": "nf4"}
    return load_transformer(checkpoint, dtype, device, forms[method], keep_zeros)


def base_size(
    checkpoint: Checkpoint, config: ModelConfig, method: str, dtype: str, keep_zeros: bool = False
) -> BaseSize:
    """What `load_base` will give, from names and shapes alone."""
    shapes, stored = checked_names(checkpoint, config)
    kind = DTYPES[dtype]
    total = weights = widest = 0
    for name, shape in shapes.items():
        count = prod(shape)
        total += count
        matrix = name.endswith("_proj.weight")
        if matrix and method == "qlora":
            weights += nf4_bytes(count) + (count // 8 if keep_zeros else 0)
        elif matrix and method == "lora" and stays_packed(checkpoint, stored[name], kind):
            weights += checkpoint.tensors.info(stored[name]).nbytes
        else:
            weights += count * kind.itemsize
            continue
        widest = max(widest, count)
    return BaseSize(total, weights, widest * kind.itemsize)
