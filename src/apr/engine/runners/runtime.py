"""Choose how a checkpoint runs on this machine: compiled CPU kernels, or torch on any device."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from apr.checkpoint import Checkpoint, open_checkpoint
from apr.checkpoint.dtypes import DTYPES, LONG_NAMES
from apr.common.errors import UsageError
from apr.engine.runners.runner import Runner, StepBatch
from apr.kernels.ops import multiplies_bf16
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.load import load_transformer, stored_weights
from apr.model.rope import short_context

_DTYPES = {**LONG_NAMES, **DTYPES}
KERNEL_CHOICES = ("auto", "compiled", "torch")
# Whether zeros of pruned matrices are left out of memory; auto: where that is faster.
SPARSE_CHOICES = {"auto": None, "always": True, "never": False}


@dataclass(frozen=True)
class Runtime:
    """A loaded model, ready to make a runner once the size of its cache is decided.

    kernels: "compiled" or "torch". weight_bytes: read for each decoding step. block_bytes: of one
    cache block of block_size positions. context: positions a sequence may reach. note: why a
    faster choice was not taken, or "".
    """

    config: ModelConfig
    make: Callable[[int], Runner]
    kernels: str
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int
    block_size: int
    block_bytes: int
    context: int
    note: str = ""


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or the best one present. Raises UsageError if torch does not have it."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} is not usable: {reason}", "try auto or cpu") from error
    return device


def pick_dtype(name: str = "auto") -> torch.dtype:
    """bf16 unless another is named. Raises UsageError for an unknown name."""
    if name == "auto":
        return torch.bfloat16
    if name not in _DTYPES:
        raise UsageError(f"--dtype {name} is unknown", f"one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def pick_product_dtype(name: str, device: torch.device) -> torch.dtype:
    """As `pick_dtype`, for work whose matrix products are torch's own: auto is fp32 on a CPU that
    multiplies no bf16, where that takes several times as long.
    """
    if name == "auto" and not multiplies_bf16(device):
        return torch.float32
    return pick_dtype(name)


def load_runtime(
    source: Path | Checkpoint,
    dtype: str = "auto",
    device: str = "auto",
    context: int | None = None,
) -> Runtime:
    """Read the weights at a path (a folder or .gguf file) or of a checkpoint for this machine.

    context: positions a sequence may reach; None: all of the model's, or a LongRoPE model's
    original context. Raises UsageError where it has not so many.
    APR_KERNELS=torch or =compiled overrides the choice of kernels, APR_SPARSE=always or =never
    whether compiled ones leave out zeros.
    """
    asked = _setting("APR_KERNELS", KERNEL_CHOICES)
    sparse = SPARSE_CHOICES[_setting("APR_SPARSE", SPARSE_CHOICES)]
    where, kind = pick_device(device), pick_dtype(dtype)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    config = config_from_checkpoint(checkpoint)
    if context is not None and context > config.max_position:
        raise UsageError(f"`max_context` is {context}, the model's {config.max_position}")
    context = context or short_context(config)
    reason = _not_compiled(config, where, kind) if asked != "torch" else "APR_KERNELS=torch"
    if reason is None:
        from apr.engine.runners.compiled_runner import (
            BLOCK_SIZE,
            CompiledRunner,
            PackedWeights,
            block_bytes,
        )
        from apr.kernels.cpu.panels import HAS_SHUFFLE

        if sparse and not HAS_SHUFFLE:
            raise UsageError("APR_SPARSE=always: this processor cannot shuffle bytes", "auto")
        packed = PackedWeights(config, stored_weights(checkpoint, config), sparse)
        return Runtime(
            config=config,
            make=lambda blocks: CompiledRunner(packed, blocks),
            kernels="compiled",
            dtype=kind,
            device=where,
            weight_bytes=packed.nbytes,
            block_size=BLOCK_SIZE,
            block_bytes=block_bytes(config),
            context=context,
        )
    if asked == "compiled":
        raise UsageError(f"APR_KERNELS=compiled is not possible here: {reason}")
    note = reason if where.type == "cpu" else ""
    return _torch_runtime(checkpoint, config, where, kind, context, note)


def _setting(name: str, known: Iterable[str]) -> str:
    """A choice made in the environment. Raises UsageError for an unknown one."""
    asked = os.environ.get(name, "auto")
    if asked not in known:
        raise UsageError(f"{name}={asked} is unknown", f"one of {', '.join(known)}")
    return asked


def _torch_runtime(
    checkpoint: Checkpoint,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    context: int,
    note: str,
) -> Runtime:
    from apr.engine.runners.torch_runner import TorchRunner, bytes_per_block

    transformer = load_transformer(checkpoint, dtype=dtype, device=str(device))
    block_size = 64
    return Runtime(
        config=config,
        make=lambda blocks: TorchRunner(transformer, blocks, block_size, context),
        kernels="torch",
        dtype=dtype,
        device=device,
        weight_bytes=sum(p.numel() * p.element_size() for p in transformer.parameters()),
        block_size=block_size,
        block_bytes=bytes_per_block(config, block_size, dtype),
        context=context,
        note=note,
    )


def _not_compiled(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels do not serve this request, or None when they do."""
    if device.type != "cpu":
        return f"the device is {device.type}"
    if dtype != torch.bfloat16:
        return f"--dtype {str(dtype).removeprefix('torch.')}"
    from apr.engine.runners.compiled_runner import unsupported

    reason = unsupported(config)
    if reason is not None:
        return reason
    message = "apr: compiling the CPU kernels, once per machine"
    notice = threading.Timer(2.0, lambda: print(message, file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        return parity_failure()
    finally:
        notice.cancel()


@lru_cache(maxsize=1)
def parity_failure() -> str | None:
    """Run a small random network both ways; a message if the compiled kernels are off here.

    bf16 activations (8 bits of mantissa) through two layers leave errors near 0.5 % of the
    largest logit; a wrong kernel leaves errors of its size.
    """
    from apr.engine.runners.compiled_runner import CompiledRunner, PackedWeights
    from apr.model.transformer import Transformer

    config = ModelConfig(
        family="llama",
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(config).to(torch.bfloat16)
    ids = (np.arange(70, dtype=np.int32) * 7) % config.vocab_size
    runner = CompiledRunner(PackedWeights(config, model.state_dict().__getitem__), num_blocks=2)
    rows = np.arange(len(ids), dtype=np.int32)
    starts, none = np.array([0, len(ids)], np.int32), np.zeros(1, np.int32)
    table = np.array([[0, 1]], np.int32)
    got = runner.forward(StepBatch(ids, starts, none, table, rows)).clone()
    runner.close()
    with torch.no_grad():
        want = model.float()(torch.from_numpy(ids).long()[None])[0]
    error = float((got - want).abs().max() / want.abs().max())
    if error < 0.03:
        return None
    return f"compiled kernels differ from the reference by {error:.1%} on this processor"
