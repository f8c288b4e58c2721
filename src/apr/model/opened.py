"""A model as it was asked for, perhaps with an adapter: found and checked, no weight read yet.

With an adapter it is one checkpoint: the update is added to each tensor as it is read. Sums are
fp32 and are rounded once, to the type that is asked for, so that the weights are those of the model
that `apr finetune --merge` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from apr.checkpoint.adapter import EMBEDDING, OUTPUT_LAYER, Adapter
from apr.common.errors import AprError
from apr.hub import Pulled, pull
from apr.hub.resolve import fingerprint
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint, config_to_hf
from apr.model.load import read_unmapped, read_weight, stored_names
from apr.text import Tokenizer, adapted_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from apr.checkpoint.adapter import Adapter


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
        shape = self._adapter.shape(name, tuple(found.shape))
        return TensorInfo(name, shape, "F32", 4 * prod(shape))

    def get(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        adapted = name in self._adapter.targets
        if not adapted and dtype is not None:
            return read_weight(self._base, self._stored[name], name, self._cfg, dtype)
        tensor = read_unmapped(self._base, self._stored[name], name, self._cfg)
        if not adapted:
            return tensor
        shape = self._adapter.shape(name, tuple(tensor.shape))
        rows = tensor.float().reshape(len(tensor), -1)
        merged = self._adapter.apply(name, rows, 0, shape[0]).view(shape)
        return merged if dtype is None else merged.to(dtype)

    def get_packed(self, name: str) -> tuple[torch.Tensor, str]:
        raise AprError(f"{self._base.path}: {name} has no blocks under an adapter")


def adapted_checkpoint(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The base with the adapter; no weight of the base is read.

    Raises AprError naming a tensor of the adapter that fits none of the base's.
    """
    cfg = config_from_checkpoint(base)
    stored = stored_names(base, cfg)
    untied = adapter.unties(cfg.tie_embeddings, cfg.vocab_size) and EMBEDDING in stored
    if untied:
        stored[OUTPUT_LAYER] = stored[EMBEDDING]
    infos = {name: base.tensors.info(found) for name, found in stored.items()}
    adapter.check({name: tuple(info.shape) for name, info in infos.items()})
    config = adapter.with_rows(base.config if base.config is not None else config_to_hf(cfg))
    if untied:
        config = {**config, "tie_word_embeddings": False}
    return Checkpoint(
        "safetensors", base.path, config, None, AdaptedSource(base, cfg, stored, adapter)
    )


@dataclass(frozen=True)
class OpenedModel:
    """ref: as the user wrote it. adapter: what is added to the weights."""

    ref: str
    pulled: Pulled
    adapter: Adapter | None = None

    @property
    def name(self) -> str:
        """What results call it."""
        return self.ref if self.adapter is None else f"{self.ref}+{self.adapter.path.name}"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors, with the adapter's update where there is one."""
        base = open_checkpoint(self.pulled.path)
        if self.adapter is None:
            return base
        return adapted_checkpoint(base, self.adapter)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base's, or what the adapter was trained with."""
        base = load_tokenizer(self.pulled.path)
        return base if self.adapter is None else adapted_tokenizer(base, self.adapter.path)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the weights do; the adapter's files are read."""
        base = fingerprint(self.pulled)
        if self.adapter is None:
            return base
        return hashlib.sha256(f"{base} {self.adapter.fingerprint}".encode()).hexdigest()[:16]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should be told before it runs."""
        return (*self.tokenizer.notes, *([self._other_base] if self._other_base else []))

    def describe(self) -> dict[str, Any]:
        """For the records."""
        value: dict[str, Any] = {"model": self.name, "fingerprint": self.fingerprint}
        if self.adapter is not None:
            value |= {"adapter": str(self.adapter.path), "adapter_base": self.adapter.base}
        return value

    @property
    def _other_base(self) -> str:
        """A word about an adapter that says it was trained on another model.

        Copies and quantizations of a model differ in where they are, so last names are compared
        where one of the two is no place on this disk.
        """
        if self.adapter is None or not (base := self.adapter.base):
            return ""
        theirs, own = Path(base).expanduser(), Path(self.ref).expanduser()
        if theirs.exists() and own.exists():
            same = theirs.resolve() == own.resolve()
        else:
            same = _last(base) == _last(self.ref)
        return "" if same else f"the adapter says it was trained on {base}, not on {self.ref}"


def open_model(
    ref: str, adapter: str | Path | None = None, *, offline: bool = False
) -> OpenedModel:
    """Find a model, and a PEFT adapter for it: a folder, or hf://org/name.

    Raises UsageError and AprError as `pull` does, and where the adapter is none, is of a kind that
    is not covered, or does not fit the model.
    """
    pulled = pull(ref, offline=offline)
    if adapter is None:
        return OpenedModel(ref, pulled)
    from apr.checkpoint.adapter import open_adapter

    remote = str(adapter).startswith("hf://")
    folder = pull(str(adapter), offline=offline).path if remote else Path(adapter)
    opened = OpenedModel(ref, pulled, open_adapter(folder))
    _ = opened.checkpoint  # which checks that they fit
    return opened


def _last(ref: str) -> str:
    return ref.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
