"""Smaller models: what goes is measured layer by layer, and the parts that stay are written.

Heads and channels by optimal brain surgeon (`surgeon`). Layers by ShortGPT's block influence (Men
et al. 2024, arXiv:2403.03853). Dimensions of the hidden state as in Minitron (Muralidharan et al.
2024, arXiv:2407.14679, section 3.1), by their size behind the norms of all layers; nothing is
refitted there: a narrower model wants training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import torch
import torch.nn.functional as F

from apr.calibrate.model_stream import ModelStream, layer_prefix
from apr.calibrate.statistics import Hessian, Norms
from apr.calibrate.walk import LayerDone, SharedInput, walk
from apr.checkpoint.model_folder import json_bytes
from apr.common.errors import AprError, UsageError
from apr.model.config import ModelConfig
from apr.prune.masks import prune_count
from apr.prune.pruned_folder import PrunedFolder
from apr.prune.surgeon import choose_groups, columns_of, refit

# transformers refuses a hidden size that is no multiple of the number of heads in these.
_HEADS_DIVIDE_HIDDEN = ("llama", "gemma3")


@dataclass(frozen=True)
class Kept:
    """What stays of a layer. groups: KV heads, each with its query heads; channels: of the MLP;
    int64, ascending.
    """

    groups: torch.Tensor
    channels: torch.Tensor


def smaller_layers(config: ModelConfig, sparsity: float, groups: int | None) -> ModelConfig:
    """The configuration with about the part `sparsity` of each layer's matrices taken.

    groups: KV heads to take from each layer; None: as large a part of them as `sparsity`, rounded
    down. Channels of the MLP make up the rest, rounded to a multiple of 32 (8 in small models).
    Raises UsageError when that would leave nothing, or what transformers does not load.
    """
    gone = _groups_to_take(config, sparsity, groups)
    per_group = config.num_heads // config.num_kv_heads
    of_group = 2 * config.hidden_size * config.head_dim * (per_group + 1)
    of_channel = 3 * config.hidden_size
    total = config.num_kv_heads * of_group + config.intermediate_size * of_channel
    channels = config.intermediate_size - (sparsity * total - gone * of_group) / of_channel
    step = 32 if config.intermediate_size >= 1024 else 8
    kept = min(round(channels / step) * step, config.intermediate_size)
    if kept < step:
        raise UsageError(f"`sparsity` {sparsity:g} would leave an MLP of {max(kept, 0)} channels")
    left = config.num_kv_heads - gone
    found = replace(config, num_kv_heads=left, num_heads=left * per_group, intermediate_size=kept)
    if found == config:
        raise UsageError(f"`sparsity` {sparsity:g} is too little to take a head or {step} channels")
    return found


def _groups_to_take(config: ModelConfig, sparsity: float, groups: int | None) -> int:
    wanted = prune_count(config.num_kv_heads, sparsity) if groups is None else groups
    if not 0 <= wanted < config.num_kv_heads:
        raise UsageError(
            f"`kv_heads` {wanted} of {config.num_kv_heads} cannot be taken", "one at least is left"
        )
    while not _loads(config, config.num_kv_heads - wanted):
        if groups is not None:
            raise UsageError(
                f"`kv_heads` {groups} leaves a number of heads that does not divide the hidden size"
                f" {config.hidden_size}, which transformers refuses in a {config.family} model"
            )
        wanted -= 1
    return wanted


def _loads(config: ModelConfig, kv_heads: int) -> bool:
    heads = config.num_heads // config.num_kv_heads * kv_heads
    return config.family not in _HEADS_DIVIDE_HIDDEN or config.hidden_size % heads == 0


def fewer_layers(config: ModelConfig, sparsity: float) -> ModelConfig:
    """The configuration with about the part `sparsity` of the layers gone, the last ones for the
    moment. Raises UsageError when none would go, or all.
    """
    count = round(sparsity * config.num_layers)
    if not 0 < count < config.num_layers:
        raise UsageError(f"`sparsity` {sparsity:g} drops {count} of {config.num_layers} layers")
    return with_layers(config, range(config.num_layers - count))


def with_layers(config: ModelConfig, layers: Sequence[int]) -> ModelConfig:
    """The configuration of the layers kept."""
    slides = config.sliding_layers
    kinds = tuple(slides[i] for i in layers) if slides else None
    window = config.sliding_window if kinds is None or any(kinds) else None
    return replace(
        config,
        num_layers=len(layers),
        sliding_layers=kinds if kinds and any(kinds) else None,
        sliding_window=window,
    )


def narrower(config: ModelConfig, sparsity: float) -> ModelConfig:
    """The configuration with about the part `sparsity` of the hidden size taken.

    Raises UsageError where the family forbids it, and when nothing would go, or all.
    """
    if config.embedding_scale != 1.0:
        raise UsageError(
            f"`method` width cannot narrow a {config.family} model: its embedding is multiplied by"
            " the root of the hidden size, and the output layer shares it",
            "`method` structured or depth",
        )
    step = _hidden_step(config)
    size = round(config.hidden_size * (1 - sparsity) / step) * step
    if not 0 < size < config.hidden_size:
        raise UsageError(
            f"`sparsity` {sparsity:g} leaves {size} of {config.hidden_size} hidden dimensions",
            f"they go in steps of {step} here",
        )
    return replace(config, hidden_size=size)


def _hidden_step(config: ModelConfig) -> int:
    return lcm(8, config.num_heads) if config.family in _HEADS_DIVIDE_HIDDEN else 8


def hidden_steps(config: ModelConfig) -> str:
    """Why another part of the hidden size may go than was asked for."""
    if _hidden_step(config) == 8:
        return "hidden dimensions go in steps of 8"
    return (
        f"hidden dimensions go in steps of {_hidden_step(config)}, a multiple of 8 and of the"
        f" {config.num_heads} heads, which must divide them"
    )


def part_of(name: str, tensor: torch.Tensor, config: ModelConfig, kept: Kept) -> torch.Tensor:
    """What stays of a layer's tensor, whose name ends in e.g. "self_attn.q_proj.weight"."""
    per_group, size = config.num_heads // config.num_kv_heads, config.head_dim
    queries, keys = columns_of(kept.groups, per_group * size), columns_of(kept.groups, size)
    module = name.split(".")[-2]
    q_size, kv_size = config.num_heads * size, config.num_kv_heads * size
    rows = {
        "q_proj": queries,
        "k_proj": keys,
        "v_proj": keys,
        "qkv_proj": torch.cat([queries, q_size + keys, q_size + kv_size + keys]),
        "gate_proj": kept.channels,
        "up_proj": kept.channels,
        "gate_up_proj": torch.cat([kept.channels, config.intermediate_size + kept.channels]),
    }
    if module in rows:
        return tensor[rows[module]]
    columns = {"o_proj": queries, "down_proj": kept.channels}
    return tensor[:, columns[module]] if module in columns else tensor


def smaller_json(raw: bytes, old: ModelConfig, new: ModelConfig, layers: Sequence[int]) -> bytes:
    """`config.json` with the new sizes; layers: those kept, by their old numbers."""
    whole = json.loads(raw)
    config = whole.get("text_config", whole)
    if new.num_layers != old.num_layers:
        config["num_hidden_layers"] = new.num_layers
        if config.get("layer_types"):
            config["layer_types"] = [config["layer_types"][i] for i in layers]
        elif old.sliding_layers and not all(old.sliding_layers):
            kinds = ("full_attention", "sliding_attention")
            config["layer_types"] = [kinds[old.sliding_layers[i]] for i in layers]
    if new.num_heads != old.num_heads:
        config["num_attention_heads"] = new.num_heads
        config["num_key_value_heads"] = new.num_kv_heads
        config["head_dim"] = new.head_dim  # no longer what hidden size and heads say
    config["intermediate_size"] = new.intermediate_size
    if new.hidden_size != old.hidden_size:
        config["hidden_size"], config["head_dim"] = new.hidden_size, new.head_dim
    return json_bytes(whole)


_ATTENTION, _MLP = "self_attn.o_proj", "mlp.down_proj"
_READS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")
_WRITES = ("o_proj", "down_proj")
_TABLES = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Shrinking:
    """A model on its way to a smaller one. config: of the smaller one. options: the method's own.
    ids: calibration, int64 (sequences, tokens). seed: of what goes at random, where that is asked.
    """

    stream: ModelStream
    config: ModelConfig
    options: Mapping[str, Any]
    ids: torch.Tensor
    seed: int
    output: PrunedFolder
    progress: bool

    def order(self, count: int, generator: torch.Generator) -> torch.Tensor | None:
        """A random order in place of the measured one; None where that counts."""
        if self.options["importance"] != "random":
            return None
        return torch.randperm(count, generator=generator)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def take_heads_and_channels(job: Shrinking) -> Iterator[float]:
    """Write every layer with the heads and channels of the smaller model; the part taken from each.

    Heads are chosen by what o_proj makes of them, channels by what down_proj does, and both
    matrices are refitted to what is left; layers behind see the smaller ones' outputs. Raises
    AprError for activations that are not finite.
    """
    stream, old = job.stream, job.stream.config
    job.output.begin(job.config)
    per_group = old.num_heads // old.num_kv_heads * old.head_dim
    sizes = {
        _ATTENTION: (per_group, job.config.num_kv_heads),
        _MLP: (1, job.config.intermediate_size),
    }
    generator = job.generator()
    kept: dict[str, torch.Tensor] = {}
    done: dict[str, torch.Tensor] = {}
    of = [name.rpartition(".")[2] for name in sizes]
    for stop in walk(stream, job.ids, Hessian, "shrinking layer", job.progress, of=of):
        if isinstance(stop, SharedInput):
            (name,) = stop.names
            kept[name], fitted = _take_groups(job, stop, *sizes[name], generator)
            done |= fitted
            continue
        parts = Kept(kept[_ATTENTION], kept[_MLP])
        before = after = 0
        for name in stream.layer_names(stop.index):
            whole = done[name] if name in done else stream.tensor(name)
            part = part_of(name, whole, old, parts)
            job.output.put(name, part)
            if name.endswith("_proj.weight"):
                before, after = before + whole.numel(), after + part.numel()
        done.clear()
        yield 1 - after / before


def _take_groups(
    job: Shrinking, stop: SharedInput[Hessian], size: int, keep: int, generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(groups kept, int64 on the CPU; the matrix refitted, by its name), which the layer runs with
    from here on. size: columns of a group.
    """
    ((name, running),) = stop.weights().items()
    weight, damping = job.stream.tensor(name).to(job.stream.device), job.options["damping"]
    with stop.named_errors():
        hessian = stop.statistic.take()
        groups, used = choose_groups(weight, hessian, size, keep, damping)
    order = job.order(weight.shape[1] // size, generator)
    if order is not None:
        groups = order[:keep].sort().values.to(groups)
    if used > damping:
        job.output.damping[name] = used
    columns, fitted = columns_of(groups, size), torch.zeros_like(weight)
    if keep * size == weight.shape[1]:
        fitted = weight
    else:
        fitted[:, columns] = refit(weight, hessian, columns, used).to(weight)
    running.copy_(fitted)
    return groups.cpu(), {name: fitted.cpu()}


def take_layers(job: Shrinking) -> Iterator[float]:
    """Drop the layers of least block influence; 1.0 of each layer that goes, 0.0 of the others.

    Raises AprError for activations that are not finite.
    """
    drop = job.stream.config.num_layers - job.config.num_layers
    influences = block_influences(job.stream, job.ids, job.progress)
    order = sorted(range(len(influences)), key=influences.__getitem__)
    random = job.order(len(order), job.generator())
    kept = sorted((order if random is None else random.tolist())[drop:])
    job.output.begin(with_layers(job.stream.config, kept), kept)
    job.output.influences = influences
    yield from (float(index not in kept) for index in range(len(influences)))


def block_influences(stream: ModelStream, ids: torch.Tensor, progress: bool) -> list[float]:
    """The block influence of every layer of the whole model."""
    found, before = [], stream.embedded(ids.flatten())
    for stop in walk(stream, ids, Norms, "layer", progress, of=()):
        assert isinstance(stop, LayerDone)
        if not torch.isfinite(stop.outputs).all():
            raise AprError(
                f"layer {stop.index}: activations are not finite",
                "this model overflows: try `dtype` float32, or check it",
            )
        found.append(block_influence(before, stop.outputs))
        before = stop.outputs.clone()
    return found


def block_influence(before: torch.Tensor, after: torch.Tensor) -> float:
    """1 - mean cosine of a layer's input and output, (tokens, C).

    ShortGPT (Men et al. 2024, arXiv:2403.03853), eq. 1.
    """
    pairs = zip(before.split(4096), after.split(4096), strict=True)
    total = sum(float(F.cosine_similarity(a.float(), b.float()).sum()) for a, b in pairs)
    return 1.0 - total / len(before)


def take_hidden_dimensions(job: Shrinking) -> Iterator[float]:
    """Write every tensor's part in a narrower model; the part taken, the same from each layer."""
    stream, size = job.stream, job.config.hidden_size
    job.output.begin(job.config)
    plan = _plan_narrowing(job)
    for name in job.output.waiting():
        tensor = stream.tensor(name)
        module = name.split(".")[-2]
        if name in plan.gains:
            tensor = tensor[plan.kept].float() * plan.gains[name]
        elif name.endswith(".bias"):
            pass  # of q, k and v: heads stay
        elif module in _WRITES:
            tensor = tensor[plan.kept]
        elif module in (*_READS, *_TABLES):
            tensor = tensor[:, plan.kept]
        job.output.put(name, tensor)
    yield from [1 - size / stream.config.hidden_size] * stream.config.num_layers


@dataclass(frozen=True)
class Narrowing:
    """kept: int64, ascending. gains: what each norm's weight is multiplied by, by its name, so
    that its output keeps its size: a norm divides by the root mean square of fewer dimensions.
    """

    kept: torch.Tensor
    gains: dict[str, float]


def _plan_narrowing(job: Shrinking) -> Narrowing:
    """Measured over the calibration. Raises AprError for activations that are not finite."""
    stream = job.stream
    energies: dict[str, torch.Tensor] = {}
    importance = torch.zeros(stream.config.hidden_size, device=stream.device)
    last = None
    for stop in walk(stream, job.ids, Norms, "measuring layer", job.progress, of=_READS):
        if isinstance(stop, LayerDone):
            last = stop.outputs
            continue
        part = stop.names[0].partition(".")[0]
        norm = "input_layernorm" if part == "self_attn" else "post_attention_layernorm"
        name = f"{layer_prefix(stop.index)}{norm}"
        with stop.named_errors(name):
            norms = stop.statistic.norms()
        importance.add_(norms / norms.mean())
        gain = stop.layer.get_submodule(norm).get_parameter("weight").float()
        before = torch.where(gain == 0, 0.0, norms / gain)
        energies[f"{name}.weight"] = before.square()
    assert last is not None
    last = last.float()
    sizes = last.square().mean(dim=1, keepdim=True).sqrt()
    energies["model.norm.weight"] = (last / sizes).square().sum(dim=0)
    kept = importance.topk(job.config.hidden_size).indices
    order = job.order(len(importance), job.generator())
    if order is not None:
        kept = order[: job.config.hidden_size].to(kept)
    kept = kept.sort().values
    gains = {n: float((e[kept].mean() / e.mean()).sqrt()) for n, e in energies.items()}
    return Narrowing(kept.cpu(), gains)
