"""The methods of pruning: METHODS says of each what it asks of calibration and what it does.

There are two kinds. One sets weights to zero: a pure function on the matrices that share an input.
The other makes the model smaller: a function on the configuration, and one that writes the parts of
tensors that stay (`apr.prune.smaller`). A new method is a new entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from apr.calibrate.statistics import Hessian, Norms, Statistic
from apr.common.errors import UsageError
from apr.model.config import ModelConfig
from apr.prune.masks import lowest, lowest_of_groups, lowest_of_rows, prune_count, wanda_scores
from apr.prune.prune_settings import Pattern, PruneSettings
from apr.prune.smaller import (
    Shrinking,
    fewer_layers,
    hidden_steps,
    narrower,
    smaller_layers,
    take_heads_and_channels,
    take_hidden_dimensions,
    take_layers,
)
from apr.prune.surgeon import DAMPING, inverse_factor, sparsegpt

Weights = Mapping[str, torch.Tensor]
STATISTICS: dict[str, Callable[[int, torch.device], Statistic]] = {
    "norms": Norms,
    "Hessians": Hessian,
}


@dataclass(frozen=True)
class Pruned:
    """weights: by the names they came with, of the same shapes, types and devices. raised: the
    damping of their Hessian, where more than was asked for was needed.
    """

    weights: dict[str, torch.Tensor]
    raised: float | None = None


def prune_magnitude(
    weights: Weights, _: Statistic | None, sparsity: float, pattern: Pattern | None
) -> Pruned:
    """The smallest absolute values of each matrix, or of each of a pattern's groups."""
    return Pruned({n: magnitude_pruned(w, sparsity, pattern) for n, w in weights.items()})


def prune_wanda(
    weights: Weights, statistic: Statistic, sparsity: float, pattern: Pattern | None
) -> Pruned:
    """The lowest |w| * ||x|| of each output (Sun et al. 2024), of its whole row or each group."""
    norms = statistic.norms()
    return Pruned({n: wanda_pruned(w, norms, sparsity, pattern) for n, w in weights.items()})


def prune_sparsegpt(
    weights: Weights, statistic: Hessian, sparsity: float, pattern: Pattern | None, damping: float
) -> Pruned:
    """`apr.prune.surgeon.sparsegpt`; the Hessian's factor is made once for all of them."""
    factor = inverse_factor(statistic.take(), damping)
    found = {}
    for name, weight in weights.items():
        pruned = sparsegpt(weight.to(factor.upper.device), factor, sparsity, pattern)
        found[name] = pruned.to(device=weight.device, dtype=weight.dtype)
    return Pruned(found, factor.damping if factor.damping > damping else None)


def magnitude_pruned(
    weight: torch.Tensor, sparsity: float, pattern: Pattern | None
) -> torch.Tensor:
    """The weight with its smallest absolute values zero, of a whole matrix or of each group."""
    scores = weight.float().abs()
    if pattern is not None:
        mask = lowest_of_groups(scores, pattern)
    else:
        mask = lowest(scores, prune_count(weight.numel(), sparsity))
    return weight.masked_fill(mask, 0)


def wanda_pruned(
    weight: torch.Tensor, norms: torch.Tensor, sparsity: float, pattern: Pattern | None
) -> torch.Tensor:
    """The weight with the lowest Wanda scores of each output zero, of each row or group."""
    scores = wanda_scores(weight, norms.to(weight.device))
    if pattern is not None:
        mask = lowest_of_groups(scores, pattern)
    else:
        mask = lowest_of_rows(scores, prune_count(weight.shape[1], sparsity))
    return weight.masked_fill(mask, 0)


# -- what each method needs ----------------------------------------------------------------------


@dataclass(frozen=True)
class MethodOption:
    """A setting of some methods only. expected: what `allowed` lets pass, in words."""

    default: Any
    allowed: Callable[[Any], bool]
    expected: str


_DAMPING = MethodOption(DAMPING, lambda value: 0 <= value < 1, "from 0 to below 1")
_KV_HEADS = MethodOption(None, lambda value: value is None or value >= 0, "0 or more")
_IMPORTANCE = MethodOption(
    "activations", ("activations", "random").__contains__, "activations or random"
)


@dataclass(frozen=True)
class Method:
    """asks: what calibration gives it: nothing, the outputs of layers, or of each input of a matrix
    its norms or Hessian. options: its own settings, fields of PruneSettings. matrices: sets weights
    to zero; from (matrices of one input, its statistic, sparsity, pattern, **options). resize, for
    methods that make the model smaller: its configuration from (old one, sparsity, options).
    shrink: writes it, and gives the part that is taken from each layer. steps: of what it takes no
    more than whole pieces, in words.
    """

    asks: Literal["nothing", "outputs", "norms", "Hessians"]
    options: Mapping[str, MethodOption] = field(default_factory=dict)
    allocations: tuple[str, ...] = ("uniform", "owl")
    matrices: Callable[..., Pruned] | None = None
    resize: Callable[[ModelConfig, float, Mapping[str, Any]], ModelConfig] | None = None
    shrink: Callable[[Shrinking], Iterator[float]] | None = None
    steps: Callable[[ModelConfig], str] = lambda config: ""


METHODS: dict[str, Method] = {
    "magnitude": Method(
        "nothing", allocations=("uniform", "owl", "global"), matrices=prune_magnitude
    ),
    "wanda": Method("norms", matrices=prune_wanda),
    "sparsegpt": Method("Hessians", {"damping": _DAMPING}, matrices=prune_sparsegpt),
    "structured": Method(
        "Hessians",
        {"damping": _DAMPING, "kv_heads": _KV_HEADS, "importance": _IMPORTANCE},
        ("uniform",),
        resize=lambda config, sparsity, options: smaller_layers(
            config, sparsity, options["kv_heads"]
        ),
        shrink=take_heads_and_channels,
        steps=lambda _: "heads go in whole groups, channels in steps of 32 (8 in small models)",
    ),
    "depth": Method(
        "outputs",
        {"importance": _IMPORTANCE},
        ("uniform",),
        resize=lambda config, sparsity, _: fewer_layers(config, sparsity),
        shrink=take_layers,
        steps=lambda config: f"whole layers go, of {config.num_layers}",
    ),
    "width": Method(
        "norms",
        {"importance": _IMPORTANCE},
        ("uniform",),
        resize=lambda config, sparsity, _: narrower(config, sparsity),
        shrink=take_hidden_dimensions,
        steps=hidden_steps,
    ),
}


def method_for(settings: PruneSettings) -> tuple[Method, dict[str, Any]]:
    """(the method, its own options). Raises UsageError for settings that mean nothing to it."""
    name = settings.method
    if name not in METHODS:
        raise UsageError(f"`method` {name} is unknown", f"one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.resize is not None and settings.pattern is not None:
        raise UsageError(f"`pattern` has no meaning with `method` {name}")
    for key in ("layers", "ignore"):
        if method.resize is not None and getattr(settings, key):
            raise UsageError(
                f"`{key}` has no meaning with `method` {name}, which makes every layer smaller"
                " or drops whole ones"
            )
    if settings.allocation not in method.allocations:
        fitting = [other for other, m in METHODS.items() if settings.allocation in m.allocations]
        raise UsageError(
            f"`allocation` {settings.allocation} has no meaning with `method` {name}",
            f"it is for {', '.join(fitting)}",
        )
    options = {}
    for key in {key: None for m in METHODS.values() for key in m.options}:
        value = getattr(settings, key)
        if key not in method.options:
            if value is not None:
                fitting = [other for other, m in METHODS.items() if key in m.options]
                raise UsageError(
                    f"`{key}` has no meaning with `method` {name}",
                    f"it is for {', '.join(fitting)}",
                )
            continue
        option = method.options[key]
        options[key] = option.default if value is None else value
        if not option.allowed(options[key]):
            raise UsageError(f"`{key}` is {value}", option.expected)
    return method, options
