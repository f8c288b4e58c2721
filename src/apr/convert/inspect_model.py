"""What a model is, read from its headers: architecture, sizes, tokenizer, how it is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from apr.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from apr.common.errors import AprError
from apr.hub import pull
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.text import load_tokenizer


@dataclass(frozen=True)
class StoredType:
    """All tensors of one type. nbytes: on disk, without headers and padding."""

    dtype: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class ModelSummary:
    """parameters: numbers stored (tied embeddings once). bits_per_weight: 8 * nbytes / parameters.

    architecture: as the files name it. config, tokenizer: None where they cannot be read, with the
    reason in notes. file_bytes: size of the weight files. types: largest first.
    """

    ref: str
    source: str
    path: Path
    format: str
    architecture: str
    parameters: int
    bits_per_weight: float
    tensor_bytes: int
    file_bytes: int
    config: ModelConfig | None
    tokenizer: dict[str, Any] | None
    types: tuple[StoredType, ...]
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_json(self, with_tensors: bool = False) -> dict[str, Any]:
        """Plain values for machines; the list of tensors only when asked for."""
        value = asdict(self)
        value["path"] = str(self.path)
        value["types"] = [asdict(kind) for kind in self.types]
        value["notes"] = list(self.notes)
        value["tensors"] = [
            {**asdict(info), "shape": list(info.shape)} for info in self.tensors if with_tensors
        ]
        if not with_tensors:
            del value["tensors"]
        return value


def inspect_model(ref: str, *, offline: bool = False, progress: bool = True) -> ModelSummary:
    """Describe the model a reference means; reads headers only (and downloads what is missing).

    An architecture or tokenizer that `apr` does not know is told in notes, not refused: what is
    stored can be described all the same. Raises UsageError and AprError as `apr.hub.resolve` and
    `open_checkpoint` do.
    """
    pulled = pull(ref, offline=offline, progress=progress)
    checkpoint = open_checkpoint(pulled.path)
    infos = tuple(checkpoint.tensors.info(name) for name in checkpoint.tensors.names())
    parameters = sum(prod(info.shape) for info in infos)
    nbytes = sum(info.nbytes for info in infos)
    notes: list[str] = []
    config = _config(checkpoint, notes)
    return ModelSummary(
        ref=ref,
        source=pulled.manifest.ref if pulled.manifest else str(pulled.path),
        path=pulled.path,
        format=checkpoint.format,
        architecture=_architecture(checkpoint),
        parameters=parameters,
        bits_per_weight=8 * nbytes / parameters if parameters else 0.0,
        tensor_bytes=nbytes,
        file_bytes=sum(path.stat().st_size for path in pulled.weight_paths()),
        config=config,
        tokenizer=_tokenizer(checkpoint.path, notes),
        types=_stored_types(infos),
        tensors=infos,
        notes=tuple(notes),
    )


def _architecture(checkpoint: Checkpoint) -> str:
    if checkpoint.metadata is not None:
        return str(checkpoint.metadata.get("general.architecture", "unnamed"))
    config = checkpoint.config or {}
    named = config.get("architectures") or [config.get("model_type", "unnamed")]
    return str(named[0])


def _config(checkpoint: Checkpoint, notes: list[str]) -> ModelConfig | None:
    try:
        return config_from_checkpoint(checkpoint)
    except AprError as error:
        notes.append(str(error))
        return None


def _tokenizer(path: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        tokenizer = load_tokenizer(path if path.suffix != ".safetensors" else path.parent)
    except AprError as error:
        notes.append(str(error))
        return None
    notes.extend(tokenizer.notes)
    return {
        "kind": type(tokenizer.backend.model).__name__,
        "vocab_size": tokenizer.vocab_size,
        "bos": tokenizer.special_tokens.get("bos_token"),
        "end": [tokenizer.id_to_token(i) for i in sorted(tokenizer.eos_ids)],
        "chat_template": tokenizer.chat_template is not None,
    }


def _stored_types(infos: tuple[TensorInfo, ...]) -> tuple[StoredType, ...]:
    found = []
    for dtype in {info.dtype for info in infos}:
        same = [info for info in infos if info.dtype == dtype]
        parameters = sum(prod(info.shape) for info in same)
        found.append(StoredType(dtype, len(same), parameters, sum(i.nbytes for i in same)))
    return tuple(sorted(found, key=lambda kind: (-kind.parameters, kind.dtype)))
