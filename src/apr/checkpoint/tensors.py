"""What a checkpoint looks like to the rest of `apr`, whatever file format it comes from.

Without torch: a file's header is read before anything heavy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from apr.common.errors import AprError

if TYPE_CHECKING:
    import torch


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
