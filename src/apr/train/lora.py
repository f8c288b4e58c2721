"""Low-rank adapters on a frozen transformer (Hu et al. 2022, arXiv:2106.09685).

y = W x + s B A x, with W frozen in whatever form its module stores it and A, B in fp32. The
products with A and B are taken in the dtype of x. Gradients stop where nothing is left to train:
autograd follows only what depends on an adapter, so layers below the lowest one are never walked
back through, and no frozen weight gets a gradient.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from apr.common.errors import UsageError
from apr.kernels import ops
from apr.model.transformer import Transformer
from apr.model.weights import Embedding, Linear, Weight
from apr.train.train_settings import LoraSettings
from apr.train.zeros import MaskedUpdate

ALL_LINEAR = "all-linear"
# What a model with fused projections has instead of the ones asked for.
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
OUTPUT_LAYER, EMBEDDING = "lm_head", "embed_tokens"


class LoraLinear(nn.Module):
    """A frozen linear module with a low-rank update.

    lora_a: fp32 (r, in), lora_b: fp32 (out, r). magnitude: fp32 (out,), of DoRA, or None.
    keep_zeros: weights of the base that are zero get no update. off: see `adapters_off`.
    """

    off = False
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    magnitude: nn.Parameter | None

    def __init__(
        self,
        base: Linear,
        rank: int,
        scaling: float,
        dropout: float = 0.0,
        keep_zeros: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.scaling, self.dropout = base, scaling, dropout
        self.keep_zeros = keep_zeros
        device = base.matrix.device
        self.lora_a = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.magnitude = None

    @property
    def rank(self) -> int:
        return self.lora_a.shape[0]

    def reset(self, generator: torch.Generator, dora: bool = False) -> None:
        """A uniform within 1 / sqrt(in) (as PEFT and the authors' code draw it), B zero."""
        bound = self.lora_a.shape[1] ** -0.5
        drawn = torch.rand(self.lora_a.shape, generator=generator) * (2 * bound) - bound
        with torch.no_grad():
            self.lora_a.copy_(drawn)
            self.lora_b.zero_()
        if dora:
            self.magnitude = nn.Parameter(self.row_lengths())

    @torch.no_grad()
    def row_lengths(self) -> torch.Tensor:
        """fp32 (out,): the length of each row of W + s B A, without making that matrix.

        |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b^T.
        """
        frozen = self.base.numbers(torch.float32)
        if not hasattr(self, "_squares"):
            self._squares = frozen.square().sum(1)
        a, b = self.lora_a, self.lora_b
        crossed = ((a @ frozen.T) * b.T).sum(0)  # (r, out) -> (out,)
        grown = ((b @ (a @ a.T)) * b).sum(1)
        squares = self._squares + 2 * self.scaling * crossed + self.scaling**2 * grown
        return squares.clamp(min=0).sqrt()

    @property
    def weight(self) -> torch.Tensor:
        """fp32 (out, in): W + s B A, for the output layer, whose matrix is asked for."""
        return self.base.numbers(torch.float32) + self.scaling * (self.lora_b @ self.lora_a)

    @property
    def matrix(self) -> torch.Tensor | Weight:
        return self.base.matrix if self.off else self.weight

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """The adapter's input."""
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.off:
            return self.base(x)
        if self.keep_zeros:
            factors = (self.lora_a, self.lora_b, self.scaling)
            weight = partial(_numbers_and_zeros, self.base, x.dtype)
            return MaskedUpdate.apply(x, weight, self.base.bias, *factors)
        dropped = self.drop(x)
        if self.magnitude is None:
            update = (dropped, self.lora_a, self.lora_b, self.scaling)
            return AddLowRank.apply(self.base(x), *update)
        # DoRA (eq. 5): the rows of W + s B A at learned lengths. Their own length counts as a
        # constant (section 4.3).
        bias = self.base.bias
        plain = self.base(dropped)
        if bias is not None:
            plain = plain - bias
        stretch = self.magnitude / self.row_lengths()
        frozen = plain.clone() if dropped is not x else None
        turned = AddLowRank.apply(plain, dropped, self.lora_a, self.lora_b, self.scaling)
        y = turned * stretch  # fp32: the lengths move by less than bf16 can tell
        if frozen is not None:
            # As PEFT: what dropout hides from the adapter is still seen by the frozen weight.
            return (self.base(x) + (y - frozen)).to(x.dtype)
        return (y if bias is None else y + bias).to(x.dtype)


class LoraEmbedding(nn.Module):
    """A frozen embedding with a low-rank update: e[id] + s B A[:, id].

    lora_a: fp32 (r, V), lora_b: fp32 (C, r). An output layer tied to the embedding stays as it is
    (as with PEFT), so that a merged model has an output layer of its own.
    """

    off = False
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    magnitude = None
    dropout = 0.0
    keep_zeros = False

    def __init__(self, base: Embedding, rank: int, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        device = base.matrix.device
        self.lora_a = nn.Parameter(torch.zeros(rank, base.num_embeddings, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.embedding_dim, rank, device=device))

    @property
    def rank(self) -> int:
        return self.lora_a.shape[0]

    @property
    def matrix(self) -> torch.Tensor | Weight:
        """The frozen matrix (V, C), which is what a tied output layer reads."""
        return self.base.matrix

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def reset(self, generator: torch.Generator) -> None:
        """A zero, B standard normal, as PEFT draws them."""
        with torch.no_grad():
            self.lora_a.zero_()
            self.lora_b.copy_(torch.randn(self.lora_b.shape, generator=generator))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        frozen = self.base(ids)
        if self.off:
            return frozen
        update = F.embedding(ids, self.lora_a.T) @ self.lora_b.T
        return frozen + (self.scaling * update).to(frozen.dtype)


Adapter = LoraLinear | LoraEmbedding


class AddLowRank(torch.autograd.Function):
    """y + s (x A^T) B^T, written into y. x: (..., in), y: (..., out); a, b: fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        narrow_a, narrow_b = a.to(x.dtype), b.to(x.dtype)
        inner = ops.matmul(x.flatten(0, -2), narrow_a.T)  # (N, r)
        ops.add_product(y.view(-1, y.shape[-1]), inner, narrow_b.T, scaling)
        ctx.save_for_backward(x, inner, narrow_a, narrow_b)
        ctx.scaling = scaling
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = gradients
        x, inner, a, b = ctx.saved_tensors
        flat = dy.flatten(0, -2)
        dinner = ops.matmul(flat, b) * ctx.scaling  # (N, r)
        dx = ops.matmul(dinner, a).view(x.shape) if ctx.needs_input_grad[1] else None
        da = ops.matmul(dinner.T, x.flatten(0, -2)).float()
        db = ops.matmul(flat.T, inner).float() * ctx.scaling
        return dy, dx, da, db, None


def adaptable_modules(model: Transformer) -> list[str]:
    """Names of the embedding and of all linear modules, in the order of the model."""
    kinds = (Embedding, Linear, LoraLinear, LoraEmbedding)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not name.endswith(".base")
    ]


def matching_modules(model: Transformer, targets: Iterable[str]) -> list[str]:
    """The modules that targets mean. UsageError for a target that means none."""
    names = adaptable_modules(model)
    chosen: set[str] = set()
    for target in targets:
        if target == ALL_LINEAR:
            found = [n for n in names if n.rpartition(".")[2] not in (OUTPUT_LAYER, EMBEDDING)]
        elif any(sign in target for sign in "*?["):
            found = [name for name in names if fnmatch.fnmatchcase(name, target)]
        else:
            wanted = FUSED.get(target, target) if model.config.fused_projections else target
            found = [n for n in names if n == wanted or n.endswith("." + wanted)]
        if not found:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            raise UsageError(f"`targets`: no layer is called {target}", f"there are {known}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def modules_to_adapt(model: Transformer, settings: LoraSettings) -> list[str]:
    """What the settings' targets mean. UsageError where they name no layer, or one that DoRA does
    not go with.
    """
    found = matching_modules(model, settings.targets)
    for leaf in (OUTPUT_LAYER, EMBEDDING):
        if settings.dora and any(name.rpartition(".")[2] == leaf for name in found):
            raise UsageError(f"`dora` does not go with {leaf}", f"leave {leaf} out of `targets`")
    return found


def add_lora(
    model: Transformer, settings: LoraSettings, seed: int = 0, keep_zeros: bool = False
) -> list[Adapter]:
    """Freeze a model and put a fresh adapter on each target, in the order of the model.

    keep_zeros: of the matrices inside the layers. Raises UsageError as `modules_to_adapt` does.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    adapters = []
    for name in modules_to_adapt(model, settings):
        adapter = attach(
            model, name, settings.rank, settings.scaling(), settings.dropout, keep_zeros
        )
        if isinstance(adapter, LoraLinear):
            adapter.reset(generator, settings.dora)
        else:
            adapter.reset(generator)
        adapters.append(adapter)
    return adapters


def attach(
    model: Transformer,
    name: str,
    rank: int,
    scaling: float,
    dropout: float = 0.0,
    keep_zeros: bool = False,
) -> Adapter:
    """Wrap one module, which must not carry an adapter yet; the update is zero.

    dropout: of a linear layer's input; an embedding has none. keep_zeros: where the module is one
    of those that are pruned.
    """
    base = model.get_submodule(name)
    if isinstance(base, Adapter):
        raise UsageError(f"{name} carries an adapter already")
    parent, _, leaf = name.rpartition(".")
    adapter: Adapter
    if isinstance(base, Embedding):
        adapter = LoraEmbedding(base, rank, scaling)
    else:
        assert isinstance(base, Linear)
        adapter = LoraLinear(base, rank, scaling, dropout, keep_zeros and name.endswith("_proj"))
    setattr(model.get_submodule(parent), leaf, adapter)
    return adapter


def adapters_of(model: Transformer) -> dict[str, Adapter]:
    """Adapters by the name of the module they are on."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Adapter)}


@contextmanager
def adapters_off(model: Transformer) -> Iterator[None]:
    """Within the block the model gives what it gives without adapters, bit by bit.

    It is its own reference then, as DPO needs one (Rafailov et al. 2023, eq. 7). Blocks may nest.
    """
    on = [adapter for adapter in adapters_of(model).values() if not adapter.off]
    try:
        for adapter in on:
            adapter.off = True
        yield
    finally:
        for adapter in on:
            adapter.off = False


def _numbers_and_zeros(base: Linear, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    weight = base.numbers(dtype)
    return weight, base.zeros(weight)
