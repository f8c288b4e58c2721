"""Several adapters on one frozen model in one forward pass.

The documents of all adapters lie one after another in a ragged batch (attention stays inside a
document), the frozen products are taken once for all of them, and each adapter adds its update
to its own rows. Parameters are disjoint, so every adapter gets the gradient it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from apr.common.errors import UsageError
from apr.model.transformer import Transformer
from apr.train.lora import AddLowRank, LoraLinear, LoraSettings, matching_modules


@dataclass
class Spans:
    """Whose rows are whose in the batch under way: (adapter, start, end), gapless."""

    now: tuple[tuple[str, int, int], ...] = field(default=())


class SharedLinear(nn.Module):
    """A frozen linear module with an adapter for each span of rows. x: (T, in)."""

    def __init__(self, base: nn.Module, spans: Spans) -> None:
        super().__init__()
        self.base, self.spans = base, spans
        self.adapters = nn.ModuleDict()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        # Split, for a slice's gradient has the size of the whole.
        sizes = [end - start for _, start, end in self.spans.now]
        rows = zip(self.base(x).split(sizes), x.split(sizes), strict=True)
        for (name, *_), (y, own) in zip(self.spans.now, rows, strict=True):
            if name not in self.adapters:
                parts.append(y)
                continue
            adapter: Any = self.adapters[name]
            update = (own, adapter.lora_a, adapter.lora_b, adapter.scaling)
            # It is written into, which a part of a split may not be.
            parts.append(AddLowRank.apply(y.clone(), *update))
        return torch.cat(parts)


def add_adapters(
    model: Transformer, wanted: Mapping[str, tuple[LoraSettings, int]]
) -> tuple[dict[str, dict[str, nn.Parameter]], Spans]:
    """Freeze a model and put fresh adapters on it. wanted: name -> (settings, seed); each begins
    with the numbers that `add_lora` would give it.

    Returns the parameters of each adapter, named as they are where it is alone, and the spans to
    set before each batch. Raises UsageError where a target names no linear layer.
    """
    model.requires_grad_(False)
    spans = Spans()
    modules = {name: matching_modules(model, lora.targets) for name, (lora, _) in wanted.items()}
    parameters: dict[str, dict[str, nn.Parameter]] = {}
    for name, (lora, seed) in wanted.items():
        if lora.dora or lora.dropout:
            raise UsageError(f"adapter {name}: DoRA and dropout cannot be shared")
        generator = torch.Generator().manual_seed(seed)
        own = parameters[name] = {}
        for path in modules[name]:
            shared = _shared(model, path, spans)
            adapter = LoraLinear(shared.base, lora.rank, lora.scaling())
            adapter.reset(generator)
            shared.adapters[name] = adapter
            own |= {f"{path}.lora_a": adapter.lora_a, f"{path}.lora_b": adapter.lora_b}
    return parameters, spans


@contextmanager
def only(model: Transformer, name: str) -> Iterator[None]:
    """The model with one adapter, as if the others were not there: to evaluate, to save."""
    places = [(path, m) for path, m in model.named_modules() if isinstance(m, SharedLinear)]
    try:
        for path, shared in places:
            alone = dict(shared.adapters.items()).get(name, shared.base)
            _put(model, path, alone)
        yield
    finally:
        for path, shared in places:
            _put(model, path, shared)


def _shared(model: Transformer, path: str, spans: Spans) -> SharedLinear:
    found = model.get_submodule(path)
    if not isinstance(found, SharedLinear):
        found = SharedLinear(found, spans)
        _put(model, path, found)
    return found


def _put(model: Transformer, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
