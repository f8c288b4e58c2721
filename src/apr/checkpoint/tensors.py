"""What a checkpoint looks like to the rest of `apr`, whatever file format it comes from, and the
number types of tensors under each name they go by: torch's, files', people's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from apr.checkpoint.gguf_header import GGML_TYPES
from apr.common.errors import AprError

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


@dataclass(frozen=True)
class TensorInfo:
    """shape: torch order (out, in). dtype: as the file names it ("BF16", "F32", "Q4_K", ...).

    nbytes: bytes on disk.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class TensorSource(Protocol):
    """Named tensors on disk, read when asked for. Unknown names raise AprError."""

    def names(self) -> list[str]:
        """All names, in file order."""
        ...

    def info(self, name: str) -> TensorInfo: ...

    def get(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor on the CPU, a view of the file where its storage allows.

        dtype None keeps F32, F16, BF16 and integers as stored and dequantizes blocks to fp32;
        otherwise floating-point tensors are converted to dtype and integers pass unchanged.
        Writing into the result never changes the file, but may be seen by later calls.
        """
        ...

    def get_packed(self, name: str) -> tuple[torch.Tensor, str]:
        """(uint8 tensor (..., bytes per row), ggml type name). AprError outside GGUF."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. config: config.json of a Hugging Face folder. metadata: GGUF pairs."""

    format: Literal["safetensors", "gguf"]
    path: Path
    config: dict[str, Any] | None
    metadata: dict[str, Any] | None
    tensors: TensorSource


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; AprError naming the file when it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AprError(f"{path} cannot be read as JSON: {error}", "download it again") from None
    if not isinstance(value, dict):
        raise AprError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value
