"""The number types of tensors, under each name they go by: torch's, files', people's."""

from __future__ import annotations

import torch

from apr.checkpoint.gguf_header import GGML_TYPES

# Torch's types -> their names in safetensors files. GGUF files have the same, where they have them.
STORED_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# GGUF's types whose bytes are the tensor: no arithmetic between the file and the caller.
GGUF_DTYPES = {name: dtype for dtype, name in STORED_NAMES.items() if name in GGML_TYPES}

# The types that models are computed and written in: as people write them, shortly and at length,
# and as files call them.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LONG_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
FLOATS = {STORED_NAMES[dtype]: dtype for dtype in DTYPES.values()}
SHORT_NAMES = {dtype: name for name, dtype in DTYPES.items()}
