"""Models with fewer heads and channels, or fewer layers: what goes, measured layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from apr.calibrate.statistics import Hessian, Nothing, Statistic
from apr.calibrate.stream import ModelStream, layer_prefix
from apr.common.errors import AprError
from apr.model.config import ModelConfig
from apr.model.transformer import Layer
from apr.prune.layers import walk
from apr.prune.output import PrunedOutput
from apr.prune.settings import PruneSettings
from apr.prune.smaller import Kept, part_of
from apr.prune.structured import choose_groups, columns_of, refit

_ATTENTION, _MLP = "self_attn.o_proj", "mlp.down_proj"


def shrink_layers(
    stream: ModelStream,
    settings: PruneSettings,
    ids: torch.Tensor,
    smaller: ModelConfig,
    output: PrunedOutput,
    damping: dict[str, float],
    progress: bool,
) -> Iterator[float]:
    """Write every layer with the heads and channels of `smaller`; the part taken from each.

    Heads are chosen by what o_proj makes of them, channels by what down_proj does, and both
    matrices are refitted to what is left; layers behind see the smaller ones' outputs. damping:
    filled in where more than asked for was needed. Raises AprError for activations that are not
    finite.
    """
    old = stream.config
    per_group = old.num_heads // old.num_kv_heads * old.head_dim
    sizes = {_ATTENTION: (per_group, smaller.num_kv_heads), _MLP: (1, smaller.intermediate_size)}
    kept: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(settings.seed)

    def observe(names: Sequence[str], size: int) -> Statistic:
        return Hessian(size, stream.device) if names[0] in sizes else Nothing()

    def treat(index: int, layer: Layer, names: Sequence[str], found: Statistic) -> None:
        if not isinstance(found, Hessian):
            return
        (name,) = names
        full, (size, keep) = f"{layer_prefix(index)}{name}.weight", sizes[name]
        weight = stream.tensor(full).to(stream.device)
        try:
            hessian = found.take()
            groups, used = choose_groups(weight, hessian, size, keep, settings.damping)
        except AprError as error:
            raise AprError(f"inputs of {full}: {error.message}", error.hint) from None
        if settings.importance == "random":
            order = torch.randperm(weight.shape[1] // size, generator=generator)
            groups = order[:keep].sort().values.to(groups)
        if used > settings.damping:
            damping[full] = used
        columns, fitted = columns_of(groups, size), torch.zeros_like(weight)
        if keep * size == weight.shape[1]:
            fitted = weight
        else:
            fitted[:, columns] = refit(weight, hessian, columns, used).to(weight)
        kept[name] = groups.cpu()
        layer.get_parameter(f"{name}.weight").copy_(fitted)
        done[full] = fitted.cpu()

    done: dict[str, torch.Tensor] = {}
    for index, _ in walk(stream, ids, observe, treat, "shrinking layer", progress):
        parts = Kept(kept[_ATTENTION], kept[_MLP])
        before = after = 0
        for name in stream.layer_names(index):
            whole = done[name] if name in done else stream.tensor(name)
            part = part_of(name, whole, old, parts)
            output.put(name, part)
            if name.endswith("_proj.weight"):
                before, after = before + whole.numel(), after + part.numel()
        done.clear()
        yield 1 - after / before


def block_influence(before: torch.Tensor, after: torch.Tensor) -> float:
    """1 - mean cosine of a layer's input and output, (tokens, C).

    ShortGPT (Men et al. 2024, arXiv:2403.03853), eq. 1.
    """
    pairs = zip(before.split(4096), after.split(4096), strict=True)
    total = sum(float(F.cosine_similarity(a.float(), b.float()).sum()) for a, b in pairs)
    return 1.0 - total / len(before)


def layers_to_keep(
    stream: ModelStream, settings: PruneSettings, ids: torch.Tensor, drop: int, progress: bool
) -> tuple[list[int], list[float]]:
    """(the layers kept, in order; the block influence of every layer of the whole model).

    Those of least influence go. Raises AprError for activations that are not finite.
    """

    def ignore(index: int, layer: Layer, names: Sequence[str], found: Nothing) -> None:
        pass

    influences, before = [], stream.embedded(ids.flatten())
    for index, x in walk(stream, ids, lambda *_: Nothing(), ignore, "layer", progress):
        if not torch.isfinite(x).all():
            raise AprError(
                f"layer {index}: activations are not finite",
                "this model overflows: try --dtype float32, or check it",
            )
        influences.append(block_influence(before, x))
        before = x.clone()
    order = sorted(range(len(influences)), key=influences.__getitem__)
    if settings.importance == "random":
        order = torch.randperm(
            len(order), generator=torch.Generator().manual_seed(settings.seed)
        ).tolist()
    return sorted(order[drop:]), influences
