"""From a checkpoint's own description of itself to `ModelConfig`, and back.

To add a family: what Hugging Face assumes for it and how its fields read in `hf_config`, its GGUF
architecture in `gguf_config`, and, only if it computes something new, a field in `ModelConfig`
that `transformer` honours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.common.errors import UsageError
from apr.model.config import ModelConfig
from apr.model.gguf_config import config_from_gguf
from apr.model.hf_config import KNOWN_FAMILIES, config_from_hf, config_to_hf

if TYPE_CHECKING:
    from apr.checkpoint import Checkpoint

__all__ = [
    "KNOWN_FAMILIES",
    "config_from_checkpoint",
    "config_from_gguf",
    "config_from_hf",
    "config_to_hf",
]


def config_from_checkpoint(checkpoint: Checkpoint) -> ModelConfig:
    """The model an open checkpoint holds. Raises UsageError naming file and field."""
    if checkpoint.metadata is None and checkpoint.config is None:
        raise UsageError(
            f"{checkpoint.path}: there is no config.json", "put the model's own beside its weights"
        )
    try:
        if checkpoint.metadata is not None:
            tensors = checkpoint.tensors
            return config_from_gguf(checkpoint.metadata, tensors.names(), tensors.get)
        assert checkpoint.config is not None
        return config_from_hf(checkpoint.config)
    except UsageError as error:
        raise UsageError(f"{checkpoint.path}: {error.message}", error.hint) from None
