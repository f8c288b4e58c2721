"""The folder that pruning writes: every tensor of the input, pruned or as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from apr.calibrate.stream import ModelStream, layer_number, with_number
from apr.checkpoint import CheckpointWriter
from apr.checkpoint.dtypes import DTYPES
from apr.checkpoint.model_folder import choose_dtype, files_from_folder, tensor_sha256
from apr.checkpoint.writer import Slot
from apr.common.errors import AprError
from apr.convert.import_checkpoint import files_from_gguf


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
class PrunedOutput:
    """Places for all tensors, in the input's order, filled in any order.

    sums: SHA-256 by name; zeros, parameters: numbers written.
    """

    stream: ModelStream
    writer: CheckpointWriter
    layout: Layout
    sums: dict[str, str] = field(default_factory=dict)
    zeros: int = 0
    parameters: int = 0
    nbytes: int = 0
    _slots: dict[str, Slot] = field(default_factory=dict)
    _places: dict[int, int] = field(default_factory=dict)

    def reserve(
        self, shapes: Mapping[str, tuple[int, ...]], layers: Sequence[int] | None = None
    ) -> None:
        """Make room for the language model's tensors of these names and shapes.

        layers: those kept, by their numbers in the input; None: all. Tensors that are no part of
        the language model (a vision tower) are copied at once.
        """
        if layers is not None:
            self._places = {old: new for new, old in enumerate(layers)}
        if self.layout.dtype is not None:
            for name, shape in shapes.items():
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
            elif known in shapes:
                kind = self.stream.stored_dtype(known)
                assert kind is not None
                self._slots[known] = self.writer.reserve(self._written(known), kind, shapes[known])

    def _written(self, name: str) -> str:
        """The name in the output of a tensor of the input."""
        written = name if self.layout.dtype else self.stream.stored[name]
        number = layer_number(written) if self._places else None
        return written if number is None else with_number(written, self._places[number])

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, rounded to the type of its place."""
        kind = self.layout.dtype or self.stream.stored_dtype(name)
        value = tensor.to(device="cpu", dtype=kind).contiguous()
        self._slots.pop(name).write(0, value.view(-1))
        self.sums[self._written(name)] = tensor_sha256(value)
        self.zeros += value.numel() - int(value.count_nonzero())
        self.parameters += value.numel()
        self.nbytes += value.nbytes

    def waiting(self) -> list[str]:
        """Names of tensors that have a place and were not written."""
        return list(self._slots)

    def put_others(self) -> None:
        """Copy what has a place and was not written."""
        for name in self.waiting():
            self.put(name, self.stream.tensor(name))
