"""Running a model's layers one after another over calibration sequences, with stops.

The walk stops where a layer's matrices share an input, hands out what was collected of that input,
and lets the caller change these matrices before it goes on. So each part of a layer sees what the
changed parts before it give, as in SparseGPT's and GPTQ's sequential mode: the Hessian of o_proj is
that of the changed attention's outputs, and the next layer's inputs are this one's outputs. One
layer and one statistic are in memory at a time, and everything runs once; but what is inside an MLP
is computed twice rather than kept where it is large.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from apr.calibrate.model_stream import ModelStream, layer_prefix
from apr.calibrate.statistics import Statistic
from apr.common.errors import AprError
from apr.common.progress import counted
from apr.model.transformer import Attend, Layer, Tables

# Tokens a layer runs over at a time: enough for fast products, few enough for the cache.
BATCH_TOKENS = 2048
# An MLP's channels over all tokens are kept up to this size.
INNER_BYTES = 512 << 20

S = TypeVar("S", bound=Statistic)
T = TypeVar("T")


@dataclass
class SharedInput(Generic[S]):
    """Matrices of a layer that multiply the same input, and the statistic of that input.

    names: as in the layer ("self_attn.q_proj"). The statistic is gone when the walk goes on.
    """

    index: int
    layer: Layer
    names: list[str]
    statistic: S

    def weights(self) -> dict[str, torch.Tensor]:
        """The matrices the layer runs with, by their names in the model."""
        prefix = layer_prefix(self.index)
        at = self.layer.get_parameter
        return {f"{prefix}{name}.weight": at(f"{name}.weight").detach() for name in self.names}

    @contextmanager
    def named_errors(self, of: str = "") -> Iterator[None]:
        """An AprError within the block says whose it is: of, or the inputs of the first matrix."""
        try:
            yield
        except AprError as error:
            whose = of or f"inputs of {next(iter(self.weights()))}"
            raise AprError(f"{whose}: {error.message}", error.hint) from None


@dataclass(frozen=True)
class LayerDone:
    """A layer's outputs (tokens of all sequences, C), which the next layer's will overwrite."""

    index: int
    outputs: torch.Tensor


@dataclass(frozen=True)
class _Part:
    """Sequences one after another. x: (tokens, C), the input of the layer that comes next.

    tables: rotary, by whether a layer slides.
    """

    x: torch.Tensor
    tables: dict[bool, Tables]
    attend: Attend


@dataclass(frozen=True)
class _Collector(Generic[S]):
    """What is collected where. empty: makes a statistic of inputs of a size; of: see `walk`."""

    empty: Callable[[int, torch.device], S]
    of: Collection[str] | None

    def wants(self, name: str) -> bool:
        return self.of is None or name in self.of

    def collect(self, inputs: Iterable[torch.Tensor]) -> S:
        found: S | None = None
        for x in inputs:
            if found is None:
                found = self.empty(x.shape[-1], x.device)
            found.add(x)
        assert found is not None
        return found


def walk(
    stream: ModelStream,
    ids: torch.Tensor,
    statistic: Callable[[int, torch.device], S],
    label: str,
    progress: bool,
    *,
    of: Collection[str] | None = None,
) -> Iterator[SharedInput[S] | LayerDone]:
    """Run all layers over sequences, stopping at each shared input and behind each layer.

    ids: int64 (sequences, tokens). statistic: what is collected of inputs, made for their size and
    device. of: where the walk stops, by the first matrix of an input ("q_proj" or "qkv_proj",
    "o_proj", "gate_proj" or "gate_up_proj", "down_proj"); None: at all of them.
    """
    x, parts = _first_input(stream, ids)
    collector = _Collector(statistic, of)
    for index in counted(range(stream.config.num_layers), label, progress):
        layer = stream.layer(index)
        for stop in _run_layer(index, layer, parts, stream.slides(index), collector):
            yield stop
            del stop.statistic, stop.layer  # the caller may hold the stop while the walk goes on
        del layer
        yield LayerDone(index, x)


@torch.no_grad()
def _first_input(stream: ModelStream, ids: torch.Tensor) -> tuple[torch.Tensor, list[_Part]]:
    """The first layer's input, and views of it of about BATCH_TOKENS."""
    count, length = ids.shape
    each = max(1, BATCH_TOKENS // length)
    sizes = {min(each, count - first) for first in range(0, count, each)}
    context = {n * length: (stream.tables(n, length), stream.attend(n, length)) for n in sizes}
    x = stream.embedded(ids.flatten())
    return x, [_Part(part, *context[len(part)]) for part in x.split(each * length)]


# Not inference mode, in which the transformer leaves out its compiled kernels for whole sequences.
@torch.no_grad()
def _run_layer(
    index: int, layer: Layer, parts: list[_Part], slides: bool, collector: _Collector[S]
) -> Iterator[SharedInput[S]]:
    """Replace each part's x by the layer's output. slides: whether its attention has a window."""
    attention, mlp = layer.self_attn, layer.mlp

    names = ["qkv_proj"] if attention.fused else ["q_proj", "k_proj", "v_proj"]
    normed = [layer.input_layernorm(part.x) for part in parts]
    if collector.wants(names[0]):
        joined = [f"self_attn.{name}" for name in names]
        yield SharedInput(index, layer, joined, collector.collect(normed))
    heads = [
        attention.heads(x, part.tables[slides], part.attend)
        for part, x in zip(parts, _emptying(normed), strict=True)
    ]
    if collector.wants("o_proj"):
        yield SharedInput(index, layer, ["self_attn.o_proj"], collector.collect(heads))
    for part, attended in zip(parts, _emptying(heads), strict=True):
        part.x.copy_(layer.add_attention(part.x, attention.o_proj(attended)))

    names = ["gate_up_proj"] if mlp.fused else ["gate_proj", "up_proj"]
    normed = [layer.mlp_input(part.x) for part in parts]
    if collector.wants(names[0]):
        joined = [f"mlp.{name}" for name in names]
        yield SharedInput(index, layer, joined, collector.collect(normed))
    channels = sum(map(len, normed)) * mlp.down_proj.in_features
    if channels * normed[0].element_size() <= INNER_BYTES:
        inner = [mlp.inner(x) for x in _emptying(normed)]
        if collector.wants("down_proj"):
            yield SharedInput(index, layer, ["mlp.down_proj"], collector.collect(inner))
        fed = (mlp.down_proj(x) for x in _emptying(inner))
    else:
        if collector.wants("down_proj"):
            found = collector.collect(mlp.inner(x) for x in normed)
            yield SharedInput(index, layer, ["mlp.down_proj"], found)
            del found
        fed = (mlp(x) for x in _emptying(normed))
    for part, out in zip(parts, fed, strict=True):
        part.x.copy_(layer.add_mlp(part.x, out))


def _emptying(items: list[T]) -> Iterator[T]:
    """The items, of which the list keeps none."""
    items.reverse()
    while items:
        yield items.pop()
