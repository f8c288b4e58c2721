"""Keys and values of all layers in blocks of a fixed number of positions."""

from __future__ import annotations

import torch

from apr.model.config import ModelConfig


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes one cache block takes: keys and values of `block_size` positions in every layer."""
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_position * block_size * dtype.itemsize


class PagedCache:
    """Slot s of a layer is position s % block_size of block s // block_size.

    Kwon et al. 2023 (arXiv:2309.06180): a sequence owns blocks, not a stretch of memory, so
    sequences with a common prefix share its blocks.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        kv_heads, dim = config.num_kv_heads, config.head_dim
        shape = (config.num_layers, num_blocks, block_size, kv_heads, dim)
        # Zeros, not empty: masked positions are multiplied by 0, which a stray NaN survives.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k and v (T, K, D) at `slots`, int64 (T,), of one layer."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, k)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, v)

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v (N, S, K, D) at `slots`, int64 (N, S), of one layer."""
        keys, values = self.keys[layer].flatten(0, 1), self.values[layer].flatten(0, 1)
        return keys[slots], values[slots]

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]
