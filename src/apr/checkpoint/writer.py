"""Writing Hugging Face folders: safetensors shards, streamed tensor by tensor, committed at once.

Everything goes to a hidden folder beside the target and is renamed into place at the end. Until
then shards are called `tensors-0000i.partial`, and the one being written has no header. So a writer
that dies, however it dies, leaves nothing that any program would take for a model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import torch

from apr.checkpoint.dtypes import STORED_NAMES
from apr.common.errors import AprError, UsageError
from apr.common.files import (
    begin,
    disk_errors,
    remove,
    replace_folder,
    sync,
    unlock_folder,
    write_at,
)

# The header comes first in the file but is known last. Large shards leave this much room for it
# and pad it with blanks, as the format allows; small ones are copied behind their exact header.
HEADER_ROOM = 256 * 1024
COPY_BELOW = 64 * 1024 * 1024


@dataclass
class _Shard:
    """A shard being written: tensor bytes from HEADER_ROOM on, the header when it is closed."""

    path: Path
    file: FileIO
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    nbytes: int = 0


class Slot:
    """The place of one tensor in a shard (see `CheckpointWriter.reserve`)."""

    def __init__(self, target: Path, name: str, file: FileIO, offset: int, nbytes: int) -> None:
        self._target, self._name, self._file = target, name, file
        self._offset, self._nbytes, self._written = offset, nbytes, 0

    def write(self, start: int, values: torch.Tensor) -> None:
        """Put contiguous values, of the slot's type, `start` elements behind its beginning.

        Parts must not overlap; one thread at a time per slot.
        """
        raw = values.view(-1).view(torch.uint8).numpy()
        with disk_errors(self._target):
            write_at(self._file, raw, self._offset + start * values.element_size())
        self._written += raw.nbytes

    def check(self) -> None:
        """AprError unless every byte was written."""
        if self._written != self._nbytes:
            raise AprError(
                f"tensor {self._name!r}: {self._written} of {self._nbytes} bytes were written"
            )


class CheckpointWriter:
    """Writes a model folder, or nothing.

        with CheckpointWriter(folder) as writer:
            writer.add("model.norm.weight", tensor)
            writer.add_file("config.json", b"{...}")

    The folder appears when the block ends without an exception: `<stem>.safetensors`, or shards
    `<stem>-0000i-of-0000N.safetensors` with `<stem>.safetensors.index.json`, split as transformers
    splits them (in order of `add`; a tensor above max_shard_bytes has a shard of its own). At any
    time about one tensor is in memory.

    folder: must not exist, or be empty, or (with overwrite) hold a model, which is replaced whole.
    Raises UsageError when it is none of these, AprError when the disk refuses a write.
    """

    def __init__(
        self,
        folder: str | Path,
        max_shard_bytes: float = 5e9,
        *,
        overwrite: bool = False,
        stem: str = "model",
    ) -> None:
        # Resolved, so that the temporary folder is on the same file system even behind a link.
        self._target = Path(folder).expanduser().resolve()
        self._max_shard_bytes = max_shard_bytes
        self._overwrite = overwrite
        self._stem = stem
        self._shards: list[_Shard] = []  # finished, in the order of their numbers
        self._open_shard: _Shard | None = None
        self._unfinished: list[_Shard] = []  # full, but with reserved places still to be filled
        self._slots: list[Slot] = []
        self._started = 0
        self._names: set[str] = set()
        self._temporary: Path | None = None
        self._files: list[FileIO] = []  # shards and the lock, to be closed whatever happens

    def __enter__(self) -> CheckpointWriter:
        _check_target(self._target, self._overwrite)
        with disk_errors(self._target):
            self._temporary, lock = begin(self._target, folder=True)
            self._files.append(lock)
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
        """Write one tensor, of any shape, strides and device, as it is. Names are unique."""
        slot = self.reserve(name, tensor.dtype, tensor.shape)
        flat = tensor.detach().to("cpu").contiguous().view(-1)
        slot.write(0, flat)

    def reserve(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> Slot:
        """A place for one tensor, to be filled in any order and from any thread before the end.

        Tensors lie in the files in the order of `reserve` and `add`.
        """
        if name in self._names:
            raise AprError(f"{self._target}: tensor {name!r} is written twice")
        stored = STORED_NAMES.get(dtype)
        if stored is None or name == "__metadata__":
            raise AprError(f"safetensors cannot store {name!r} of type {dtype}")
        nbytes = prod(shape) * dtype.itemsize
        with disk_errors(self._target):
            shard = self._shard_for(nbytes)
        shard.entries[name] = {
            "dtype": stored,
            "shape": list(shape),
            "data_offsets": [shard.nbytes, shard.nbytes + nbytes],
        }
        slot = Slot(self._target, name, shard.file, HEADER_ROOM + shard.nbytes, nbytes)
        shard.nbytes += nbytes
        self._slots.append(slot)
        self._names.add(name)
        return slot

    def _shard_for(self, nbytes: int) -> _Shard:
        """The shard that has room for so many bytes; a new one if need be."""
        if nbytes > self._max_shard_bytes:
            shard = self._start_shard()
            self._unfinished.append(shard)
            return shard
        current = self._open_shard
        if current is not None and current.nbytes + nbytes > self._max_shard_bytes:
            self._unfinished.append(current)
            current = None
        self._open_shard = current or self._start_shard()
        return self._open_shard

    def add_file(self, name: str, content: bytes | Path) -> None:
        """Put another file (config.json, tokenizer.json, ...) in the folder: bytes, or a copy.

        name: relative, may lead into subfolders, must not be that of a weights file.
        """
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise AprError(f"{name!r} does not lie inside the model folder")
        if re.fullmatch(rf"{re.escape(self._stem)}.*\.safetensors(\.index\.json)?", name):
            raise AprError(f"{name!r} is the writer's own file", "pass tensors to add()")
        if isinstance(content, Path) and not content.is_file():
            raise AprError(f"{content}: no such file to put in {self._target}")
        path = self._folder() / relative
        if path.exists():
            raise AprError(f"{self._target}: file {name!r} is written twice")
        with disk_errors(self._target):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)

    def _folder(self) -> Path:
        if self._temporary is None:
            raise AprError(f"{self._target}: the writer is not open", "use it in a with block")
        return self._temporary

    def _start_shard(self) -> _Shard:
        self._started += 1
        path = self._folder() / f"tensors-{self._started:05d}.partial"
        file = FileIO(path, "w+")
        self._files.append(file)
        return _Shard(path, file)

    def _finish(self, shard: _Shard) -> None:
        self._shards.append(shard)
        header = _header(shard.entries)
        exact = 8 + len(header)
        if exact <= HEADER_ROOM and shard.nbytes >= COPY_BELOW:
            header = header.ljust(HEADER_ROOM - 8)
        else:
            _move_data(shard, exact)
        write_at(shard.file, struct.pack("<Q", len(header)) + header, 0)
        shard.file.truncate(8 + len(header) + shard.nbytes)
        shard.file.close()

    def _commit(self) -> None:
        if not self._names:
            raise AprError(f"{self._target}: no tensor was written")
        for slot in self._slots:
            slot.check()
        folder = self._folder()
        with disk_errors(self._target):
            for shard in [*self._unfinished, *([self._open_shard] if self._open_shard else [])]:
                self._finish(shard)
            total = len(self._shards)
            weight_map: dict[str, str] = {}
            for number, shard in enumerate(self._shards, start=1):
                part = f"-{number:05d}-of-{total:05d}" if total > 1 else ""
                shard.path = shard.path.rename(folder / f"{self._stem}{part}.safetensors")
                weight_map |= dict.fromkeys(shard.entries, shard.path.name)
            if total > 1:
                size = sum(shard.nbytes for shard in self._shards)
                index = {"metadata": {"total_size": size}, "weight_map": weight_map}
                text = json.dumps(index, indent=2, sort_keys=True) + "\n"
                (folder / f"{self._stem}.safetensors.index.json").write_text(text)
            unlock_folder(folder)
            _sync_folder(folder)
            replace_folder(folder, self._target)
            self._temporary = None

    def _clean_up(self) -> None:
        """Remove the temporary folder, unless it was committed, and close all files."""
        if self._temporary is not None:
            remove(self._temporary)
            self._temporary = None
        self._open_shard = None
        for file in self._files:
            file.close()


def _header(entries: dict[str, dict[str, Any]]) -> bytes:
    """The safetensors header, padded with blanks to a multiple of 8 as the format's own writer."""
    content = {"__metadata__": {"format": "pt"}, **entries}
    raw = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return raw.ljust((len(raw) + 7) // 8 * 8)


def _move_data(shard: _Shard, start: int) -> None:
    """Move the tensor bytes from HEADER_ROOM to `start`, up or down, in pieces."""
    piece = 8 * 1024 * 1024
    offsets = range(0, shard.nbytes, piece)
    # Moving towards the end must begin at the end, lest bytes be overwritten before they are read.
    for offset in offsets if start < HEADER_ROOM else reversed(offsets):
        wanted = min(piece, shard.nbytes - offset)
        write_at(
            shard.file, os.pread(shard.file.fileno(), wanted, HEADER_ROOM + offset), start + offset
        )


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file", "name a folder for the model")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{target} exists and is not empty", "choose another or overwrite it")
    if not (target / "config.json").is_file() and not any(target.glob("*.safetensors")):
        raise UsageError(f"{target} holds other things than a model", "choose another folder")


def _sync_folder(folder: Path) -> None:
    """Make the files of a folder, and the folder, survive a power failure after the rename."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
