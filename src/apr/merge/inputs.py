"""The models a merge reads: Hugging Face folders, GGUF files, adapters on a base.

Whatever the format, an input is a set of tensors under Hugging Face's names, read block by block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint import Checkpoint, open_checkpoint
from apr.checkpoint.adapter import EMBEDDING, OUTPUT_LAYER, Adapter, is_adapter, open_adapter
from apr.checkpoint.dtypes import FLOATS
from apr.checkpoint.names import usual_names
from apr.checkpoint.safetensors_folder import SafetensorsSource
from apr.common.errors import AprError, UsageError
from apr.hub import Pulled, pull
from apr.merge.operands import KINDS, Reader, in_memory
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint, config_to_hf
from apr.model.load import read_weight, stored_names
from apr.text import Tokenizer, adapted_tokenizer, load_tokenizer

KEPT_BYTES = 10 << 20
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_LAYER = re.compile(r"^(.*?\.)(\d+)(\..*)$")


@dataclass(frozen=True)
class ModelInput:
    """One opened model. label: how it is called in messages; ref: as the user wrote it."""

    ref: str
    label: str
    pulled: Pulled
    checkpoint: Checkpoint
    stored: dict[str, str] = field(repr=False)  # Hugging Face name -> name in the file
    family: ModelConfig | None  # of GGUF files, whose layout depends on it
    adapter: Adapter | None = None
    untied: bool = False  # by the adapter, see Adapter.unties

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json's contents (for GGUF, made from its metadata)."""
        config = self.checkpoint.config
        if self.family is not None:
            config = config_to_hf(self.family)
        if config is None:
            raise UsageError(f"{self.checkpoint.path}: there is no config.json")
        if self.adapter is not None:
            config = self.adapter.with_rows(config)
        return {**config, "tie_word_embeddings": False} if self.untied else config

    @property
    def path(self) -> Path:
        return self.pulled.path

    @cached_property
    def layers(self) -> int:
        """Number of transformer layers, counted from tensor names."""
        found = [layer for name in self.stored if (layer := layer_of(name)) is not None]
        return max(found, default=-1) + 1

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding matrix."""
        return bool(self.config.get("tie_word_embeddings", OUTPUT_LAYER not in self.stored))

    def tokenizer(self) -> Tokenizer:
        """The model's, or what its adapter was trained with."""
        own = load_tokenizer(self.path if self.path.suffix != ".safetensors" else self.path.parent)
        return own if self.adapter is None else adapted_tokenizer(own, self.adapter.path)

    @property
    def tokenizer_path(self) -> Path:
        """Where the vocabulary that it was trained with lies."""
        own = self.adapter is not None and (self.adapter.path / "tokenizer.json").is_file()
        return self.adapter.path if self.adapter is not None and own else self.path

    def shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.checkpoint.tensors.info(self.stored[name]).shape)
        return shape if self.adapter is None else self.adapter.shape(name, shape)

    def dtype(self, name: str) -> torch.dtype | None:
        """The float type a tensor is stored in; None for quantized blocks."""
        return FLOATS.get(self.checkpoint.tensors.info(self.stored[name]).dtype)

    def is_float(self, name: str) -> bool:
        dtype = self.checkpoint.tensors.info(self.stored[name]).dtype
        return self.checkpoint.format == "gguf" or dtype.startswith(("BF", "F"))

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, a view of the file where possible."""
        if self.family is None:
            return self.checkpoint.tensors.get(self.stored[name])
        return read_weight(self.checkpoint, self.stored[name], name, self.family, None)

    def reader(self, name: str, memory: Memory | None = None) -> Reader:
        """memory: see FileReader."""
        if self.adapter is not None and name in self.adapter.saved:
            # Whole in the adapter, perhaps of another number of rows.
            reader: Reader = in_memory(self.adapter.saved[name].float(), self.label)
        elif self.family is None and self.dtype(name) is not None:
            reader = FileReader(self, name, memory or Memory())
        else:
            tensor = self.tensor(name)
            reader = in_memory(tensor if tensor.dtype in KINDS else tensor.float(), self.label)
        if self.adapter is not None and name in self.adapter.targets:
            return AdaptedReader(reader, self.adapter, name, self.shape(name))
        return reader

    def nbytes(self, name: str) -> int:
        return self.checkpoint.tensors.info(self.stored[name]).nbytes


class FileReader:
    """Blocks of one tensor of a safetensors file, read one after another into the same memory: a
    block is good until the next.

    whole: read all of a tensor of at most KEPT_BYTES at the first call; for those who look several
    times. Small blocks, which stay in the processor's cache, are faster for those who look once.
    """

    whole = False

    def __init__(self, model: ModelInput, name: str, memory: Memory) -> None:
        assert isinstance(model.checkpoint.tensors, SafetensorsSource)
        self.label = model.label
        self._source, self._name = model.checkpoint.tensors, model.stored[name]
        self._dtype = FLOATS[self._source.info(self._name).dtype]
        self._nbytes = model.nbytes(name)
        self._memory, self._room = memory, memory.take()
        self._held = (0, 0)

    def __call__(self, start: int, end: int) -> torch.Tensor:
        size = self._dtype.itemsize
        if not self._held[0] <= start <= end <= self._held[1]:
            whole = self.whole and self._nbytes <= KEPT_BYTES
            self._held = (0, self._nbytes // size) if whole else (start, end)
            first, last = (size * place for place in self._held)
            if len(self._room) < last - first:
                self._room = torch.empty(last - first, dtype=torch.uint8)
            self._source.read_into(self._name, first, self._room[: last - first])
        first = self._held[0]
        return self._room[(start - first) * size : (end - first) * size].view(self._dtype)

    def close(self) -> None:
        """Leave the memory to another reader."""
        self._memory.give(self._room)


class Memory:
    """What readers read into, handed on from one to the next: fresh pages are slow to come by."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []

    def take(self) -> torch.Tensor:
        """(n,) uint8, of any size."""
        try:
            return self._free.pop()
        except IndexError:
            return torch.empty(0, dtype=torch.uint8)

    def give(self, room: torch.Tensor) -> None:
        self._free.append(room)


class AdaptedReader:
    """Blocks of a tensor with a LoRA adapter applied, in fp32."""

    def __init__(self, base: Reader, adapter: Adapter, name: str, shape: tuple[int, ...]) -> None:
        self.label = base.label
        self._base, self._adapter, self._name = base, adapter, name
        self._width = shape[1] if len(shape) > 1 else 1

    def __call__(self, start: int, end: int) -> torch.Tensor:
        # Blocks are whole rows (see Operands.blocks).
        rows = self._base(start, end).float().view(-1, self._width)
        first, last = start // self._width, end // self._width
        return self._adapter.apply(self._name, rows, first, last).contiguous().view(-1)


def layer_of(name: str) -> int | None:
    """The layer a tensor belongs to: the first number in its name; None outside the layers."""
    match = _LAYER.match(name)
    return int(match[2]) if match else None


def in_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    match = _LAYER.match(name)
    assert match is not None
    return f"{match[1]}{layer}{match[3]}"


def open_input(
    ref: str, base: str | None = None, *, offline: bool = False, progress: bool = True
) -> ModelInput:
    """Open a model for merging; of an adapter alone, its base with it.

    base: the base of adapters that do not say where it is. Raises UsageError and AprError naming
    the file.
    """
    model, adapter = split_adapter(ref)
    if adapter is not None and not model:
        model = open_adapter(adapter).base or ""
        if base is not None and not _exists(model):
            model = base
        if not model:
            raise UsageError(f"{ref}: the adapter does not name its base", "write BASE+ADAPTER")
    pulled = pull(as_reference(model), offline=offline, progress=progress)
    checkpoint = open_checkpoint(pulled.path)
    family = config_from_checkpoint(checkpoint) if checkpoint.format == "gguf" else None
    if family is None:
        config = checkpoint.config or {}
        names = checkpoint.tensors.names()
        stored = {name: name for name in names}
        if "text_config" not in config:
            stored = usual_names(names, bool(config.get("tie_word_embeddings")))
    else:
        stored = stored_names(checkpoint, family)
    opened = ModelInput(ref, label_of(ref), pulled, checkpoint, stored, family)
    return opened if adapter is None else _adapted(opened, open_adapter(adapter))


def _adapted(model: ModelInput, adapter: Adapter) -> ModelInput:
    """The model with an adapter."""
    rows = model.shape(EMBEDDING)[0] if EMBEDDING in model.stored else 0
    if adapter.unties(model.tied, rows) and rows:
        stored = {**model.stored, OUTPUT_LAYER: model.stored[EMBEDDING]}
        model = replace(model, stored=stored, untied=True)
    adapter.check({name: model.shape(name) for name in model.stored})
    return replace(model, adapter=adapter)


def split_adapter(ref: str) -> tuple[str, Path | None]:
    """(model, adapter) of MODEL+ADAPTER, of a model, or ("", adapter) of an adapter's folder."""
    path = Path(ref).expanduser()
    if path.exists():
        return ("", path) if is_adapter(path) else (ref, None)
    model, plus, adapter = ref.partition("+")
    return (model, Path(adapter).expanduser()) if plus else (ref, None)


def _exists(ref: str) -> bool:
    return bool(ref) and Path(ref).expanduser().exists()


def as_reference(ref: str) -> str:
    """A reference as `apr` writes it; org/name that is no folder here is a hub model."""
    if not Path(ref).expanduser().exists() and _HUB_NAME.fullmatch(ref):
        return f"hf://{ref}"
    return ref


def label_of(ref: str) -> str:
    """A short name: the last part of a path or hub name."""
    return ref.rstrip("/").rpartition("/")[2] or ref


def elements(shape: tuple[int, ...]) -> int:
    return prod(shape)


def missing(model: ModelInput, name: str) -> AprError:
    return AprError(
        f"{model.label}: tensor {name} is missing", "models of one architecture are needed"
    )
