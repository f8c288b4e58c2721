"""Running one layer over all calibration sequences, stopping where weights are to be changed.

Each part of a layer sees what the changed parts before it give, as in SparseGPT's and GPTQ's
sequential mode: the Hessian of o_proj is that of the pruned attention's outputs, and the next
layer's inputs are this one's outputs. So one statistic is in memory at a time, and everything runs
once; but what is inside an MLP is computed twice rather than kept where it is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from apr.calibrate.statistics import Nothing, Statistic
from apr.model.transformer import Attend, Layer, Tables

# An MLP's channels over all tokens are kept up to this size.
INNER_BYTES = 512 << 20

S = TypeVar("S", bound=Statistic)
T = TypeVar("T")
# (names of the linear layers that share inputs, the inputs' size) -> an empty statistic
Observe = Callable[[Sequence[str], int], S]
# (names of the linear layers that share inputs, statistic of these): may change their weights
Treat = Callable[[Sequence[str], S], None]


@dataclass(frozen=True)
class Part:
    """Sequences one after another. x: (tokens, C), the input of the layer that comes next.

    tables: rotary, by whether a layer slides.
    """

    x: torch.Tensor
    tables: dict[bool, Tables]
    attend: Attend


# Not inference mode, in which the transformer leaves out its compiled kernels for whole sequences.
@torch.no_grad()
def run_layer(
    layer: Layer, parts: Sequence[Part], slides: bool, observe: Observe[S], treat: Treat[S]
) -> None:
    """Replace each part's x by the layer's output.

    slides: whether this layer's attention has a window. treat is called for each group of linear
    layers that share an input, in the order they run, with names as in the layer
    ("self_attn.q_proj").
    """
    _attention(layer, parts, slides, observe, treat)
    _mlp(layer, [part.x for part in parts], observe, treat)


def _attention(
    layer: Layer, parts: Sequence[Part], slides: bool, observe: Observe[S], treat: Treat[S]
) -> None:
    attention = layer.self_attn
    names = ["qkv_proj"] if attention.fused else ["q_proj", "k_proj", "v_proj"]
    normed = [layer.input_layernorm(part.x) for part in parts]
    # Statistics are never bound to a name: one is gone when the next begins.
    joined = [f"self_attn.{name}" for name in names]
    treat(joined, _collect(observe(joined, normed[0].shape[-1]), normed))
    heads = [
        attention.heads(x, part.tables[slides], part.attend)
        for part, x in zip(parts, _emptying(normed), strict=True)
    ]
    output = ["self_attn.o_proj"]
    treat(output, _collect(observe(output, heads[0].shape[-1]), heads))
    for part, attended in zip(parts, _emptying(heads), strict=True):
        part.x.copy_(layer.add_attention(part.x, attention.o_proj(attended)))


def _mlp(layer: Layer, parts: Sequence[torch.Tensor], observe: Observe[S], treat: Treat[S]) -> None:
    mlp, size = layer.mlp, layer.mlp.down_proj.in_features
    names = ["gate_up_proj"] if mlp.fused else ["gate_proj", "up_proj"]
    normed = [layer.mlp_input(part) for part in parts]
    joined, down = [f"mlp.{name}" for name in names], ["mlp.down_proj"]
    treat(joined, _collect(observe(joined, parts[0].shape[-1]), normed))
    if sum(map(len, parts)) * size * normed[0].element_size() <= INNER_BYTES:
        inner = [mlp.inner(part) for part in _emptying(normed)]
        treat(down, _collect(observe(down, size), inner))
        fed = (mlp.down_proj(part) for part in _emptying(inner))
    else:
        treat(down, _collect(observe(down, size), (mlp.inner(part) for part in normed)))
        fed = (mlp(part) for part in _emptying(normed))
    for part, out in zip(parts, fed, strict=True):
        part.copy_(layer.add_mlp(part, out))


def _emptying(items: list[T]) -> Iterator[T]:
    """The items, of which the list keeps none."""
    items.reverse()
    while items:
        yield items.pop()


def _collect(statistic: S, inputs: Iterable[torch.Tensor]) -> S:
    if isinstance(statistic, Nothing):
        return statistic
    for x in inputs:
        statistic.add(x)
    return statistic
