"""The folder that pruning writes: every tensor of the input, pruned or as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from apr.calibrate.model_stream import ModelStream, layer_number, with_number
from apr.checkpoint import CheckpointWriter
from apr.checkpoint.dtypes import DTYPES
from apr.checkpoint.model_folder import choose_dtype, files_from_folder, tensor_sha256
from apr.checkpoint.writer import Slot
from apr.common.errors import AprError
from apr.convert.import_checkpoint import files_from_gguf
from apr.model.config import ModelConfig
from apr.model.load import expected_shapes


@dataclass
class Layout:
    """How tensors are written. dtype: of all; None: as stored. files: beside the weights."""

    dtype: torch.dtype | None
    files: dict[str, bytes]
    notes: list[str]


def layout_of(stream: ModelStream) -> Layout:
    """As the input is, for a Hugging Face folder; for GGUF as `apr import` writes it.

    Raises AprError for weights stored in types that cannot be pruned (8-bit floats).
    """
    checkpoint = stream.checkpoint
    if checkpoint.format == "gguf":
        name, notes = choose_dtype(checkpoint, None)
        files, more = files_from_gguf(checkpoint, stream.config, name)
        return Layout(DTYPES[name], files, notes + more)
    for name in stream.shapes:
        if stream.stored_dtype(name) is None:
            stored = checkpoint.tensors.info(stream.stored[name]).dtype
            raise AprError(
                f"{checkpoint.path}: tensor {name} is {stored}, which apr cannot prune",
                "prune the model before it is quantized",
            )
    return Layout(None, files_from_folder(checkpoint, None), [])


@dataclass
class PrunedFolder:
    """Places for all tensors, in the input's order, filled in any order.

    config, layers, shapes: see `begin`. sums: SHA-256 by name; zeros, parameters: numbers written;
    nbytes: of tensors. damping: of matrices whose Hessian needed more than was asked for.
    influences: of all layers, where these were measured.
    """

    stream: ModelStream
    writer: CheckpointWriter
    layout: Layout
    config: ModelConfig = field(init=False)
    layers: tuple[int, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    zeros: int = 0
    parameters: int = 0
    nbytes: int = 0
    damping: dict[str, float] = field(default_factory=dict)
    influences: list[float] = field(default_factory=list)
    _slots: dict[str, Slot] = field(default_factory=dict)
    _shared: tuple[int, int] = (0, 0)

    def begin(self, config: ModelConfig, layers: Sequence[int] | None = None) -> None:
        """Make room for the tensors of a model of this configuration.

        layers: those kept, by their numbers in the input; None: all. Tensors that are no part of
        the language model (a vision tower) are copied at once.
        """
        self.config = config
        self.layers = tuple(range(config.num_layers) if layers is None else layers)
        self.shapes = self._shapes()
        if self.layout.dtype is not None:
            for name, shape in self.shapes.items():
                written = self._written(name)
                self._slots[name] = self.writer.reserve(written, self.layout.dtype, shape)
            return
        ours: dict[str, str | None] = {at: name for name, at in self.stream.stored.items()}
        source = self.stream.checkpoint.tensors
        for stored in source.names():
            known = ours.get(stored)
            if known is None:
                self.writer.add(stored, tensor := source.get(stored))
                self.sums[stored] = tensor_sha256(tensor)
            elif known in self.shapes:
                kind, shape = self.stream.stored_dtype(known), self.shapes[known]
                assert kind is not None
                self._slots[known] = self.writer.reserve(self._written(known), kind, shape)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors that are written, by their names in the input; a stored copy of
        tied embeddings is one of them.
        """
        found = {}
        for name, shape in expected_shapes(self.config).items():
            number = layer_number(name)
            found[name if number is None else with_number(name, self.layers[number])] = shape
        tied = "lm_head.weight"
        if tied in self.stream.stored and tied not in found:
            found[tied] = found["model.embed_tokens.weight"]
        return found

    def _written(self, name: str) -> str:
        """The name in the output of a tensor of the input."""
        written = name if self.layout.dtype else self.stream.stored[name]
        number = layer_number(written)
        return written if number is None else with_number(written, self.layers.index(number))

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, rounded to the type of its place."""
        kind = self.layout.dtype or self.stream.stored_dtype(name)
        value = tensor.to(device="cpu", dtype=kind).contiguous()
        self._slots.pop(name).write(0, value.view(-1))
        self.sums[self._written(name)] = tensor_sha256(value)
        self.zeros += value.numel() - int(value.count_nonzero())
        self.parameters += value.numel()
        self.nbytes += value.nbytes

    def share(self) -> float:
        """The part of zeros among what was written since this was asked last; 0 of nothing."""
        zeros, parameters = self._shared
        self._shared = (self.zeros, self.parameters)
        return (self.zeros - zeros) / max(1, self.parameters - parameters)

    def waiting(self) -> list[str]:
        """Names of tensors that have a place and were not written."""
        return list(self._slots)

    def put_others(self) -> None:
        """Copy what has a place and was not written."""
        for name in self.waiting():
            self.put(name, self.stream.tensor(name))
