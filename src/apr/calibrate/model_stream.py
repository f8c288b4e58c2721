"""A model on disk, one layer of it in memory at a time."""

from __future__ import annotations

import re

import torch
from torch import nn

from apr.checkpoint import Checkpoint
from apr.common.errors import AprError
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.load import FLOATS, expected_shapes, read_unmapped, stored_names
from apr.model.rope import needs_long_factors
from apr.model.transformer import Attend, Layer, Tables, Transformer, document_attention


class ModelStream:
    """The tensors of a checkpoint by their Hugging Face names, and its layers when asked for.

    dtype, device: what layers are run in.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.config: ModelConfig = config_from_checkpoint(checkpoint)
        self.stored = stored_names(checkpoint, self.config)
        self.shapes = expected_shapes(self.config)
        missing = next((name for name in self.shapes if name not in self.stored), None)
        if missing is not None:
            raise AprError(f"{checkpoint.path}: tensor {missing} is missing")
        with torch.device("meta"):
            self._skeleton = Transformer(self.config)

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """The float type of a tensor in the file; None for quantized blocks."""
        return FLOATS.get(self.checkpoint.tensors.info(self.stored[name]).dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor on the CPU as it is stored, or in fp32 where it is quantized."""
        stored = self.stored[name]
        found = read_unmapped(self.checkpoint, stored, name, self.config)
        if tuple(found.shape) != self.shapes.get(name, tuple(found.shape)):
            raise AprError(
                f"{self.checkpoint.path}: tensor {stored} has shape {tuple(found.shape)}, expected"
                f" {self.shapes[name]}",
                "the weights do not belong to this configuration",
            )
        return found

    def layer_names(self, index: int) -> list[str]:
        prefix = layer_prefix(index)
        return [name for name in self.shapes if name.startswith(prefix)]

    def matrices(self, index: int) -> list[str]:
        """Names of the linear layers' weights of a layer: what can be pruned."""
        return [name for name in self.layer_names(index) if is_matrix(name)]

    def layer(self, index: int) -> Layer:
        """A layer with its weights; nobody else holds them."""
        with torch.device("meta"):
            layer = Layer(self.config, index)
        for name in self.layer_names(index):
            path, _, leaf = name.removeprefix(layer_prefix(index)).rpartition(".")
            weight = self.tensor(name).to(device=self.device, dtype=self.dtype)
            setattr(layer.get_submodule(path), leaf, nn.Parameter(weight, requires_grad=False))
        return layer

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """The first layer's input (..., C) of ids (...)."""
        used, places = ids.unique(return_inverse=True)
        rows = self.tensor("model.embed_tokens.weight")[used].to(self.device, self.dtype)
        table = nn.Parameter(rows, requires_grad=False)
        self._skeleton.model.embed_tokens.weight = table
        return self._skeleton.embed(places.to(self.device))

    def tables(self, count: int, length: int) -> dict[bool, Tables]:
        """Rotary tables of sequences one after another, by whether a layer slides."""
        positions = torch.arange(length, device=self.device).repeat(count)
        return self._skeleton.rotary(positions, needs_long_factors(self.config, length))

    def attend(self, count: int, length: int) -> Attend:
        """Attention inside each of `count` sequences one after another."""
        return document_attention(self._skeleton, tuple(range(0, (count + 1) * length, length)))

    def slides(self, index: int) -> bool:
        return self._skeleton.slides[index]


_NUMBER = re.compile(r"(?<=\blayers\.)\d+")


def is_matrix(name: str) -> bool:
    """Whether a tensor is the weight of one of the layers' linear parts."""
    return name.endswith("_proj.weight")


def layer_prefix(index: int) -> str:
    return f"model.layers.{index}."


def layer_number(name: str) -> int | None:
    """The layer a tensor belongs to, by its name."""
    found = _NUMBER.search(name)
    return int(found[0]) if found else None


def with_number(name: str, index: int) -> str:
    """The name of the same tensor of another layer."""
    return _NUMBER.sub(str(index), name, count=1)
