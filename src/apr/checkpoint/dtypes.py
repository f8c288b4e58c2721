"""The float types models are written in."""

from __future__ import annotations

from collections import Counter

import torch

from apr.checkpoint import Checkpoint
from apr.common.errors import AprError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Stored types that are kept when no dtype is asked for.
_KEPT = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


def choose_dtype(checkpoint: Checkpoint, asked: str | None) -> tuple[str, list[str]]:
    """(float type to write, notes): the one asked for, or the type that holds most weights."""
    if asked is not None:
        return asked, []
    counts: Counter[str] = Counter()
    for name in checkpoint.tensors.names():
        info = checkpoint.tensors.info(name)
        counts[info.dtype] += torch.Size(info.shape).numel()
    (main, _), *_ = counts.most_common(1)
    if main in _KEPT:
        return _KEPT[main], []
    note = f"{main} weights were rounded to bf16; --dtype fp32 keeps their exact values"
    return "bf16", [note]


def check_fp16_range(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """Raise AprError where a conversion to fp16 made values infinite."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise AprError(
            f"{checkpoint.path}: tensor {name} has values that fp16 cannot hold (above 65504)",
            "use --dtype bf16 or fp32",
        )
