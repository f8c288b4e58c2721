"""Safetensors checkpoints, one file or shards with an index, read through memory maps."""

from __future__ import annotations

import os
import struct
import weakref
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from apr.checkpoint.tensors import TensorInfo, read_json_object
from apr.common.errors import AprError, UsageError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def find_weights(folder: Path) -> Path | None:
    """The index or the single weights file of a Hugging Face folder; None when it has neither.

    A lone .safetensors file of another name counts, an adapter does not. Raises UsageError when
    several files could be meant.
    """
    for name in (INDEX_FILE, WEIGHTS_FILE):
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    adapters = [file for file in found if file.name.startswith("adapter_")]
    found = [file for file in found if file not in adapters]
    if len(found) == 1 and "-of-" not in found[0].stem:
        return found[0]
    if found:
        listed = ", ".join(file.name for file in found[:3])
        raise UsageError(f"{folder} holds {listed} but no {INDEX_FILE}", "download the index too")
    if adapters:
        raise UsageError(f"{folder} holds an adapter, not a model", "name its base model")
    return None


class SafetensorsSource:
    """A TensorSource over one .safetensors file or the shards an index names.

    Tensors are views of the (private, copy-on-write) memory maps the safetensors library makes.
    """

    def __init__(self, file_of: dict[str, Path], handles: dict[Path, Any]) -> None:
        self._file_of = file_of
        self._handles = handles
        self._opened: dict[Path, _Opened] = {}  # see read_into

    @classmethod
    def from_file(cls, path: Path) -> SafetensorsSource:
        """Open an index (*.json) with all its shards, or one .safetensors file."""
        if path.suffix == ".json":
            return cls._from_index(path)
        handle = _open(path)
        return cls(dict.fromkeys(handle.offset_keys(), path), {path: handle})

    @classmethod
    def _from_index(cls, index: Path) -> SafetensorsSource:
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise AprError(f"{index} has no weight_map", "download it again")
        handles: dict[Path, Any] = {}
        shard_names = sorted({str(shard) for shard in weight_map.values()})
        for shard in shard_names:
            path = index.parent / shard
            # A weight_map is data from elsewhere: it must not lead out of the folder.
            if Path(shard).name != shard:
                raise AprError(f"{index} names the shard {shard!r} outside its folder")
            if not path.is_file():
                raise AprError(f"{index} names the shard {shard}, which is missing", "download it")
            handles[path] = _open(path)
        file_of: dict[str, Path] = {}
        for path, handle in handles.items():
            held = handle.offset_keys()
            file_of |= {n: path for n in held if weight_map.get(n, path.name) == path.name}
        for name, shard in weight_map.items():
            # Of an output layer that is the embedding, some writers list a name and store nothing;
            # where it is a matrix of its own, whoever reads the model misses it.
            if name not in file_of and not name.endswith("lm_head.weight"):
                raise AprError(
                    f"{index} places tensor {name!r} in {shard}, which does not hold it",
                    "index and shards do not belong together; download them again",
                )
        return cls(file_of, handles)

    def names(self) -> list[str]:
        return list(self._file_of)

    def info(self, name: str) -> TensorInfo:
        view = self._handle(name).get_slice(name)
        shape, dtype = tuple(view.get_shape()), str(view.get_dtype())
        return TensorInfo(name, shape, dtype, prod(shape) * _bits(dtype) // 8)

    def get(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = self._handle(name).get_tensor(name)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        return tensor

    def read_into(self, name: str, first: int, buffer: torch.Tensor) -> None:
        """Fill a contiguous buffer with a tensor's bytes from byte `first` on, by plain reading.

        Several times faster than copying from the map, whose page faults cost more than the copy,
        and the pages do not count as this process's memory. Raises AprError when the file ends.
        """
        path = self._file_of[name]
        if path not in self._opened:
            self._opened[path] = _Opened(path, self._handles[path])
        opened = self._opened[path]
        left = memoryview(buffer.view(torch.uint8).numpy().data)
        position = opened.starts[name] + first
        while left:
            count = os.preadv(opened.descriptor, [left], position)
            if count == 0:
                raise AprError(f"{path} ended early", "another program may be changing it")
            left, position = left[count:], position + count

    def get_packed(self, name: str) -> tuple[torch.Tensor, str]:
        info = self.info(name)
        raise AprError(f"tensor {name!r} is {info.dtype}, not packed GGUF blocks")

    def _handle(self, name: str) -> Any:
        path = self._file_of.get(name)
        if path is None:
            raise AprError(f"the checkpoint has no tensor {name!r}")
        return self._handles[path]


class _Opened:
    """A file open for plain reading. starts: offsets of the tensors' first bytes."""

    def __init__(self, path: Path, handle: Any) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        (header,) = struct.unpack("<Q", os.pread(self.descriptor, 8, 0))
        self.starts: dict[str, int] = {}
        position = 8 + header
        for name in handle.offset_keys():  # in the order of the data, which has no holes
            self.starts[name] = position
            view = handle.get_slice(name)
            position += prod(view.get_shape()) * _bits(view.get_dtype()) // 8


def _bits(dtype: str) -> int:
    """Bits an element of a safetensors dtype name takes: its digits, e.g. BF16, F8_E4M3, I64."""
    if dtype == "BOOL":
        return 8
    digits = dtype.partition("_")[0].lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return int(digits)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file", "check the path")
    with open(path, "rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise UsageError(f"{path} is a Git LFS pointer, not the file", "run `git lfs pull`")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise AprError(
            f"{path} is truncated or not a safetensors file: {error}", "download it again"
        ) from None
