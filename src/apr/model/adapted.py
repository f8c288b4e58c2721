"""A model with a LoRA adapter, as one checkpoint: the update is added to each tensor as it is read.

Sums are fp32 and are rounded once, to the type that is asked for, so that the weights are those of
the model that `apr finetune --merge` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from apr.checkpoint import Checkpoint, TensorInfo
from apr.checkpoint.adapter import EMBEDDING, OUTPUT_LAYER, Adapter
from apr.common.errors import AprError
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint, config_to_hf
from apr.model.load import read_unmapped, read_weight, stored_names


class AdaptedSource:
    """A `TensorSource` of Hugging Face names. stored: these -> names in the base's file."""

    def __init__(
        self, base: Checkpoint, cfg: ModelConfig, stored: Mapping[str, str], adapter: Adapter
    ) -> None:
        self._base, self._cfg, self._stored, self._adapter = base, cfg, stored, adapter

    def names(self) -> list[str]:
        return list(self._stored)

    def info(self, name: str) -> TensorInfo:
        found = self._base.tensors.info(self._stored[name])
        if name not in self._adapter.targets:
            return TensorInfo(name, found.shape, found.dtype, found.nbytes)
        return TensorInfo(name, found.shape, "F32", 4 * prod(found.shape))

    def get(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        adapted = name in self._adapter.targets
        if not adapted and dtype is not None:
            return read_weight(self._base, self._stored[name], name, self._cfg, dtype)
        tensor = read_unmapped(self._base, self._stored[name], name, self._cfg)
        if not adapted:
            return tensor
        rows = tensor.float().reshape(len(tensor), -1)
        merged = self._adapter.apply(name, rows, 0, len(rows)).view(tensor.shape)
        return merged if dtype is None else merged.to(dtype)

    def get_packed(self, name: str) -> tuple[torch.Tensor, str]:
        raise AprError(f"{self._base.path}: {name} has no blocks under an adapter")


def adapted_checkpoint(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The base with the adapter; no weight of the base is read.

    Raises AprError naming a tensor of the adapter that fits none of the base's.
    """
    cfg = config_from_checkpoint(base)
    stored = stored_names(base, cfg)
    untied = adapter.unties(cfg.tie_embeddings) and EMBEDDING in stored
    if untied:
        stored[OUTPUT_LAYER] = stored[EMBEDDING]
    infos = {name: base.tensors.info(found) for name, found in stored.items()}
    adapter.check({name: tuple(info.shape) for name, info in infos.items()})
    config = dict(base.config) if base.config is not None else config_to_hf(cfg)
    if untied:
        config["tie_word_embeddings"] = False
    return Checkpoint(
        "safetensors", base.path, config, None, AdaptedSource(base, cfg, stored, adapter)
    )
