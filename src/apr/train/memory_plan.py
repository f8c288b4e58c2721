"""What training will need, worked out from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

from apr.checkpoint.adapter import open_adapter
from apr.checkpoint.dtypes import DTYPES
from apr.common.errors import UsageError
from apr.common.memory import process_memory
from apr.kernels.logprobs import CHUNK
from apr.model.config import ModelConfig
from apr.model.transformer import Transformer
from apr.train.base import BaseSize
from apr.train.lora import ALL_LINEAR, FUSED, modules_to_adapt
from apr.train.train_settings import LoraSettings

# Gradient and AdamW's two moments in fp32 beside each trained parameter, which is fp32 itself.
_GRADIENT = 4
_STATE_BYTES = 4 + _GRADIENT + 8
# Measured on Linux with glibc: compiled kernels and libraries that load with the first step, and
# what the allocator holds for each byte of activations (freed pieces between kept ones) unless it
# was told to return them (`apr.common.memory`); then it keeps a pool of small pieces.
_LIBRARIES, _HOLES, _POOL = 110_000_000, 1.2, 100_000_000
# In fp32 torch's products and attention hold what goes in and what comes out side by side.
_SIDE_BY_SIDE = 2


@dataclass(frozen=True)
class MemoryPlan:
    """parameters: of the model; trainable: of these and of adapters. The rest in bytes. process:
    the interpreter and its libraries. weights: as they are stored. trained: fp32 values, gradients
    and optimizer state. activations: kept for the backward pass, beyond the room of the gradients
    that take their place. work: what a layer or the loss needs for a moment, the larger.
    """

    parameters: int
    trainable: int
    process: int
    weights: int
    trained: int
    activations: int
    work: int

    @property
    def peak(self) -> int:
        return sum(self.components().values())

    def components(self) -> dict[str, int]:
        names = ("process", "weights", "trained", "activations", "work")
        return {name: getattr(self, name) for name in names}


def plan_memory(
    config: ModelConfig,
    base: BaseSize,
    method: str,
    lora: LoraSettings,
    dtype: str,
    recompute: bool,
    batch: tuple[int, int, int],
    adapter: Path | None = None,
    accumulate: int = 1,
) -> MemoryPlan:
    """batch: (tokens, targets, longest document) of the largest batch. accumulate: batches whose
    gradients are added up for a step.

    Raises UsageError for a rank that no layer has and as `modules_to_adapt` does, and what
    `open_adapter` raises.
    """
    with torch.device("meta"):
        model = Transformer(config)
    width = DTYPES[dtype].itemsize
    parameters = base.parameters
    if method == "full":
        trainable, masters = parameters, parameters * (_STATE_BYTES if width < 4 else 12)
    else:
        trainable = _adapter_size(model, lora, adapter)
        masters = trainable * _STATE_BYTES
    tokens, targets, longest = batch
    layer = layer_bytes(config, width, method, lora)
    kept = config.hidden_size * width if recompute else layer
    holes, pool = (1.0, _POOL) if recompute or method == "qlora" else (_HOLES, 0)
    activations = round(tokens * config.num_layers * kept * holes)
    if accumulate == 1:  # later batches find the gradients of those before them
        activations = max(0, activations - trainable * _GRADIENT)
    return MemoryPlan(
        parameters=parameters,
        trainable=trainable,
        process=process_memory() + _LIBRARIES + pool,
        weights=base.weights,
        trained=masters,
        activations=activations,
        work=base.scratch
        + _work(config, width, tokens, targets, longest, layer if recompute else 0, method),
    )


def layer_bytes(config: ModelConfig, width: int, method: str, lora: LoraSettings) -> int:
    """What one layer keeps of one token for its backward pass.

    Inputs of both norms, of attention (q, k, v and its output) and of the gated product; what the
    norms give where a linear layer behind them learns. With dropout each layer that learns has an
    input of its own and a byte for each of its numbers; DoRA keeps the layers' outputs as well.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    numbers = 2 * hidden + (2 * q + 2 * kv) + 2 * inner
    shapes = {
        "q_proj": (hidden, q), "k_proj": (hidden, kv), "v_proj": (hidden, kv),
        "o_proj": (q, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }  # fmt: skip
    names = [target.rpartition(".")[2] for target in lora.targets]
    learned = {
        leaf
        for leaf in shapes
        for name in names
        if method == "full" or name in (ALL_LINEAR, FUSED.get(leaf)) or fnmatch(leaf, name)
    }
    if method != "full" and lora.dropout:
        wide = sum(shapes[leaf][0] for leaf in learned)
        numbers += wide + wide // width
    else:
        numbers += hidden * bool(learned & {"q_proj", "k_proj", "v_proj"})
        numbers += hidden * bool(learned & {"gate_proj", "up_proj"})
        numbers += inner * ("down_proj" in learned)
    if method != "full" and lora.dora:
        numbers += sum(shapes[leaf][1] for leaf in learned)
    return numbers * width


def _adapter_size(model: Transformer, lora: LoraSettings, adapter: Path | None) -> int:
    if adapter is not None:
        return sum(f.a.numel() + f.b.numel() for f in open_adapter(adapter).factors.values())
    shapes = {name: p.shape for name, p in model.named_parameters()}
    adapted = [shapes[f"{name}.weight"] for name in modules_to_adapt(model, lora)]
    most = max(map(min, adapted))
    if most < lora.rank != LoraSettings.rank:  # the usual rank is nobody's mistake
        raise UsageError(
            f"`rank` {lora.rank} is more than any change of these layers has", f"at most {most}"
        )
    return sum(lora.rank * (out + wide) + (out if lora.dora else 0) for out, wide in adapted)


def _work(
    config: ModelConfig,
    width: int,
    tokens: int,
    targets: int,
    longest: int,
    layer: int,
    method: str,
) -> int:
    """The larger of the two peaks: the loss's chunk of logits, and the widest layer going back."""
    logits = CHUNK * config.vocab_size * width + targets * config.hidden_size * width
    if method == "full":
        logits += config.vocab_size * config.hidden_size * 4
    backward = tokens * (3 * config.intermediate_size + 4 * config.hidden_size) * width
    scores = 2 * config.num_heads * longest**2 * 4
    beside = _SIDE_BY_SIDE if width == 4 else 1
    return max(logits, beside * (backward + layer * tokens) + scores)
