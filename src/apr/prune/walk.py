"""Running one layer over all calibration sequences, stopping where weights are to be changed.

Each part of a layer sees what the changed parts before it give, as in SparseGPT's and GPTQ's
sequential mode: the Hessian of o_proj is that of the pruned attention's outputs, and the next
layer's inputs are this one's outputs. So one statistic is in memory at a time, and attention runs
once; only the MLP's first half runs twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from apr.model.transformer import Attend, Layer, Tables
from apr.prune.statistics import Statistic

S = TypeVar("S", bound=Statistic)
# (inputs' size) -> an empty statistic
Observe = Callable[[int], S]
# (names of the linear layers that share inputs, statistic of these): may change their weights
Treat = Callable[[Sequence[str], S], None]


@torch.inference_mode()
def run_layer(
    layer: Layer,
    x: torch.Tensor,
    tables: Tables,
    attend: Attend,
    *,
    batch: int,
    observe: Observe[S],
    treat: Treat[S],
) -> None:
    """Replace x (sequences, T, C) by the layer's output, `batch` sequences at a time.

    treat is called for each group of linear layers that share an input, in the order they run,
    with names as in the layer ("self_attn.q_proj").
    """
    _attention(layer, x.split(batch), tables, attend, observe, treat)
    _mlp(layer, x.split(batch), observe, treat)


def _attention(
    layer: Layer,
    parts: Sequence[torch.Tensor],
    tables: Tables,
    attend: Attend,
    observe: Observe[S],
    treat: Treat[S],
) -> None:
    attention = layer.self_attn
    names = ["qkv_proj"] if attention.fused else ["q_proj", "k_proj", "v_proj"]
    inputs = (layer.input_layernorm(part) for part in parts)
    # Statistics are never bound to a name: one is gone when the next begins.
    treat([f"self_attn.{name}" for name in names], _collect(observe(parts[0].shape[-1]), inputs))
    heads = [
        attention.heads(layer.input_layernorm(part), tables, attend).contiguous() for part in parts
    ]
    treat(["self_attn.o_proj"], _collect(observe(heads[0].shape[-1]), heads))
    for part, attended in zip(parts, heads, strict=True):
        part.copy_(layer.add_attention(part, attention.o_proj(attended)))


def _mlp(layer: Layer, parts: Sequence[torch.Tensor], observe: Observe[S], treat: Treat[S]) -> None:
    mlp = layer.mlp
    names = ["gate_up_proj"] if mlp.fused else ["gate_proj", "up_proj"]
    inputs = (layer.mlp_input(part) for part in parts)
    treat([f"mlp.{name}" for name in names], _collect(observe(parts[0].shape[-1]), inputs))
    inner = (mlp.inner(layer.mlp_input(part)) for part in parts)
    treat(["mlp.down_proj"], _collect(observe(mlp.down_proj.in_features), inner))
    for part in parts:
        part.copy_(layer.add_mlp(part, mlp(layer.mlp_input(part))))


def _collect(statistic: S, inputs: Iterable[torch.Tensor]) -> S:
    for x in inputs:
        statistic.add(x)
    return statistic
