"""Checkpoints: lazy, memory-mapped reading of Hugging Face folders and GGUF files, atomic writing.

The names below load their module when first used, so that reading a GGUF header (metadata,
tokenizer) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr.checkpoint.blocks import dequantize
    from apr.checkpoint.gguf_file import GgufWriter, check_gguf_target
    from apr.checkpoint.gguf_header import GGML_TYPES, GgmlType, GgufHeader, read_gguf_header
    from apr.checkpoint.names import gguf_to_hf, hf_to_gguf, is_rope_table
    from apr.checkpoint.open import open_checkpoint
    from apr.checkpoint.tensors import Checkpoint, TensorInfo, TensorSource
    from apr.checkpoint.writer import CheckpointWriter

__all__ = [
    "GGML_TYPES",
    "Checkpoint",
    "CheckpointWriter",
    "GgmlType",
    "GgufHeader",
    "GgufWriter",
    "TensorInfo",
    "TensorSource",
    "check_gguf_target",
    "dequantize",
    "gguf_to_hf",
    "hf_to_gguf",
    "is_rope_table",
    "open_checkpoint",
    "read_gguf_header",
]

_MODULE_OF = {
    "GGML_TYPES": "gguf_header",
    "Checkpoint": "tensors",
    "CheckpointWriter": "writer",
    "GgmlType": "gguf_header",
    "GgufHeader": "gguf_header",
    "GgufWriter": "gguf_file",
    "TensorInfo": "tensors",
    "TensorSource": "tensors",
    "check_gguf_target": "gguf_file",
    "dequantize": "blocks",
    "gguf_to_hf": "names",
    "hf_to_gguf": "names",
    "is_rope_table": "names",
    "open_checkpoint": "open",
    "read_gguf_header": "gguf_header",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
