"""How large the cache may be: computed from free memory, and said."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from apr.common.errors import AprError

# The rest is for activations, logits and whatever else the machine is doing.
CACHE_FRACTION = 0.5


@dataclass(frozen=True)
class Budget:
    """num_blocks cache blocks of block_size positions; bytes they take and that were free."""

    num_blocks: int
    block_size: int
    bytes: int
    free: int

    def __str__(self) -> str:
        return (
            f"cache: {self.num_blocks} blocks of {self.block_size} positions,"
            f" {self.bytes / 2**30:.2f} GiB at most, of {self.free / 2**30:.1f} GiB free"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return psutil.virtual_memory().available


def plan_cache(
    device: torch.device, block_bytes: int, block_size: int, context: int, max_concurrency: int
) -> Budget:
    """As many blocks as max_concurrency full contexts need, within half of the free memory.

    Raises AprError when not even one block per sample fits.
    """
    free = free_memory(device)
    wanted = max_concurrency * -(-context // block_size)
    possible = int(free * CACHE_FRACTION) // block_bytes
    if possible < max_concurrency:
        raise AprError(
            f"{free / 2**30:.2f} GiB are free on {device}, and a cache for {max_concurrency}"
            f" samples needs at least {max_concurrency * block_bytes / CACHE_FRACTION / 2**30:.2f}",
            "free memory or lower the concurrency",
        )
    blocks = min(wanted, possible)
    return Budget(blocks, block_size, blocks * block_bytes, free)
