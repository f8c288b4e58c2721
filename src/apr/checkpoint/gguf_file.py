"""GGUF files: lazy tensors over memory maps of one file or of all parts of a split model, and
writing one file, in place only when it is complete.

A file being written grows under a hidden name beside the target, without the four magic bytes every
GGUF file begins with; these are written, and the name given, at the end. So a writer that dies,
however it dies, leaves nothing that any program would take for a model. Layout: see `gguf_header`.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apr.checkpoint.blocks import dequantize
from apr.checkpoint.dtypes import GGUF_DTYPES
from apr.checkpoint.gguf_header import (
    DEFAULT_ALIGNMENT,
    GgufHeader,
    GgufTensor,
    parse_gguf_header,
    read_gguf_header,
    split_parts,
)
from apr.checkpoint.tensors import TensorInfo
from apr.common.errors import AprError, UsageError
from apr.common.files import begin, disk_errors, remove, sync, write_at

if TYPE_CHECKING:
    import gguf

_MAGIC = b"GGUF"
_U32_MAX, _I32_MIN = 2**32 - 1, -(2**31)


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
        plain = GGUF_DTYPES.get(tensor.kind.name)
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


class GgufWriter:
    """Writes a .gguf file, or nothing.

        with GgufWriter(path, "llama", metadata, tensors) as writer:
            for info in tensors:
                writer.add(info.name, tensor)

    metadata: key to bool, int, float, str or a list of one of these, stored as llama.cpp reads
    them: ints as u32 (negative: i32, beyond 32 bits: u64 or i64) and in lists as i32, floats as
    f32; surrogate escapes become the bytes they stand for. "general.architecture" comes first and
    need not be there. Empty lists are left out.
    tensors: all tensors in the order of `add`; shape in torch order, dtype a ggml type's name.
    The file appears when the block ends without an exception and every tensor was added. At any
    time about one tensor is in memory.

    Raises UsageError when `path` is in the way (a folder; a file without `overwrite`), AprError
    when the disk refuses a write.
    """

    def __init__(
        self,
        path: str | Path,
        architecture: str,
        metadata: Mapping[str, Any],
        tensors: Sequence[TensorInfo],
        *,
        overwrite: bool = False,
    ) -> None:
        # Resolved, so that the temporary file is on the same file system even behind a link.
        self._target = Path(path).expanduser().resolve()
        self._architecture = architecture
        self._metadata = metadata
        self._tensors = tensors
        self._overwrite = overwrite
        self._added = 0
        self._position = 0
        self._temporary: Path | None = None
        self._file: FileIO | None = None

    def __enter__(self) -> GgufWriter:
        check_gguf_target(self._target, self._overwrite)
        try:
            with disk_errors(self._target):
                self._temporary, self._file = begin(self._target, folder=False)
                self._write_header()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._clean_up()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor: of its plain type, or uint8 holding the bytes of its blocks."""
        file = self._open_file()
        expected = self._tensors[self._added] if self._added < len(self._tensors) else None
        if expected is None or expected.name != name:
            due = "none" if expected is None else repr(expected.name)
            raise AprError(f"{self._target}: tensor {name!r} comes where {due} is due")
        dtype = GGUF_DTYPES.get(expected.dtype, torch.uint8)
        if tensor.dtype != dtype or tensor.nbytes != expected.nbytes:
            raise AprError(
                f"{self._target}: tensor {name!r} is {tensor.nbytes} bytes of {tensor.dtype}, "
                f"announced were {expected.nbytes} of {dtype}"
            )
        data = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
        with disk_errors(self._target):
            write_at(file, data, self._position)
            self._position = _aligned(self._position + tensor.nbytes)
            file.truncate(self._position)  # the padding is a hole of zeros
        self._added += 1

    def _open_file(self) -> FileIO:
        if self._file is None:
            raise AprError(f"{self._target}: the writer is not open", "use it in a with block")
        return self._file

    def _write_header(self) -> None:
        """Everything before the tensor data, by the gguf package; the magic bytes blanked."""
        import gguf  # not needed for reading, and it costs a tenth of a second

        header = gguf.GGUFWriter(self._temporary, self._architecture)
        for key, value in self._metadata.items():
            if key != "general.architecture" and value != []:
                header.add_key_value(key, _packable(value), _value_type(value))
        for info in self._tensors:
            kind = gguf.GGMLQuantizationType[info.dtype]
            # The numpy type only matters where no raw type is given.
            header.add_tensor_info(info.name, info.shape, np.dtype("f4"), info.nbytes, kind)
        try:
            header.write_header_to_file()
            header.write_kv_data_to_file()
            header.write_ti_data_to_file()
        finally:
            header.close()
        file = self._open_file()
        write_at(file, bytes(len(_MAGIC)), 0)
        self._position = _aligned(file.seek(0, 2))
        file.truncate(self._position)

    def _commit(self) -> None:
        file = self._open_file()
        assert self._temporary is not None
        if self._added < len(self._tensors):
            missing = self._tensors[self._added].name
            raise AprError(f"{self._target}: tensor {missing!r} was announced but not written")
        with disk_errors(self._target):
            write_at(file, _MAGIC, 0)
            sync(self._temporary)
            self._temporary.rename(self._target)
            self._temporary = None
            sync(self._target.parent)

    def _clean_up(self) -> None:
        if self._temporary is not None:
            remove(self._temporary)
            self._temporary = None
        if self._file is not None:
            self._file.close()
            self._file = None


def check_gguf_target(path: Path, overwrite: bool) -> None:
    """Raise UsageError where no GGUF file can be written to `path`."""
    if path.suffix != ".gguf":
        raise UsageError(f"{path} does not end in .gguf", "name the file to write, e.g. model.gguf")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a file to write")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", "choose another name, or `force` to replace it")


def _aligned(position: int) -> int:
    return (position + DEFAULT_ALIGNMENT - 1) // DEFAULT_ALIGNMENT * DEFAULT_ALIGNMENT


def _value_type(value: Any) -> gguf.GGUFValueType:
    import gguf

    kinds = gguf.GGUFValueType
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= _U32_MAX:
            return kinds.UINT32
        if value > 0:
            return kinds.UINT64
        return kinds.INT32 if value >= _I32_MIN else kinds.INT64
    return kinds.get_type(value)


def _packable(value: Any) -> Any:
    """Strings as the bytes to be stored; everything else as it is."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, list | tuple):
        return [_packable(one) for one in value]
    return value
