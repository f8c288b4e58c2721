"""GGUF checkpoints: lazy tensors over memory maps of one file or of all parts of a split model."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint.blocks import dequantize
from apr.checkpoint.gguf_header import (
    GgufHeader,
    GgufTensor,
    parse_gguf_header,
    read_gguf_header,
    split_parts,
)
from apr.checkpoint.source import TensorInfo
from apr.common.errors import AprError

# Types whose bytes are the tensor: no arithmetic between the file and the caller.
PLAIN_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}


class GgufSource:
    """A TensorSource over a .gguf file; given one part of a split model, over all its parts.

    metadata: the key/value pairs of the (first) file. Raises UsageError and AprError as
    `read_gguf_header` does, and when parts are missing or do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self._maps: list[mmap.mmap] = []
        self._entries: dict[str, tuple[mmap.mmap, GgufTensor]] = {}
        parts = split_parts(path)
        headers = [self._map_file(part) for part in parts]
        self.metadata: dict[str, Any] = headers[0].metadata
        _check_split(headers)
        for data, header in zip(self._maps, headers, strict=True):
            for name, tensor in header.tensors.items():
                if name in self._entries:
                    raise AprError(f"{header.path}: tensor {name!r} is in another part as well")
                self._entries[name] = (data, tensor)

    def names(self) -> list[str]:
        return list(self._entries)

    def info(self, name: str) -> TensorInfo:
        _, tensor = self._entry(name)
        return TensorInfo(name, tensor.shape, tensor.kind.name, tensor.nbytes)

    def get(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        data, tensor = self._entry(name)
        plain = PLAIN_DTYPES.get(tensor.kind.name)
        if plain is None:
            packed = _bytes_of(data, tensor)
            try:
                values = dequantize(packed, tensor.kind.name, dtype or torch.float32)
            except AprError as error:
                raise AprError(f"tensor {name!r}: {error.message}", error.hint) from None
            return values.view(tensor.shape)
        values = _bytes_of(data, tensor).view(plain).view(tensor.shape)
        if dtype is not None and values.is_floating_point():
            values = values.to(dtype)
        return values

    def get_packed(self, name: str) -> tuple[torch.Tensor, str]:
        data, tensor = self._entry(name)
        kind = tensor.kind
        *outer, row = tensor.shape or (1,)
        row_bytes = row // kind.block_elements * kind.block_bytes
        return _bytes_of(data, tensor).view(*outer, row_bytes), kind.name

    def _entry(self, name: str) -> tuple[mmap.mmap, GgufTensor]:
        entry = self._entries.get(name)
        if entry is None:
            raise AprError(f"the checkpoint has no tensor {name!r}")
        return entry

    def _map_file(self, path: Path) -> GgufHeader:
        read_magic = path.is_file() and path.stat().st_size >= 24
        if not read_magic:
            return read_gguf_header(path)  # which raises, saying what is wrong
        with open(path, "rb") as file:
            data = _map_private(file.fileno())
        self._maps.append(data)
        return parse_gguf_header(path, data)


def _map_private(descriptor: int) -> mmap.mmap:
    """Map a whole file copy-on-write.

    torch has no read-only tensors, and a tensor over read-only pages dies by SIGSEGV when someone
    writes to it; copy-on-write pages take the write and keep it from the file. Without NORESERVE
    Linux would refuse to map a file larger than its free memory this way.
    """
    flags = mmap.MAP_PRIVATE
    if sys.platform == "linux":
        flags |= getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13
    return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _bytes_of(data: mmap.mmap, tensor: GgufTensor) -> torch.Tensor:
    """A uint8 view of the map; it keeps the map alive."""
    if tensor.nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(data, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.start)


def _check_split(headers: list[GgufHeader]) -> None:
    """Compare what the parts say about themselves (keys `split.*`) with the parts at hand."""
    if len(headers) == 1 and "split.count" not in headers[0].metadata:
        return
    for number, header in enumerate(headers):
        count = header.metadata.get("split.count", len(headers))
        part = header.metadata.get("split.no", number)
        if (part, count) != (number, len(headers)):
            raise AprError(
                f"{header.path} says it is part {part + 1} of {count}, "
                f"its name says {number + 1} of {len(headers)}",
                "give the parts their own names back",
            )
    expected = headers[0].metadata.get("split.tensors.count")
    held = sum(len(header.tensors) for header in headers)
    if expected is not None and expected != held:
        raise AprError(
            f"{headers[0].path}: all parts should hold {expected} tensors, they hold {held}",
            "download the parts again",
        )
