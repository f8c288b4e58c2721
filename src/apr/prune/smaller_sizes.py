"""The sizes of a smaller model of the same family, its `config.json`, and parts of its tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

import torch

from apr.checkpoint.model_folder import json_bytes
from apr.common.errors import UsageError
from apr.model.config import ModelConfig
from apr.prune.masks import prune_count
from apr.prune.surgeon import columns_of

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
    step = lcm(8, config.num_heads) if config.family in _HEADS_DIVIDE_HIDDEN else 8
    size = round(config.hidden_size * (1 - sparsity) / step) * step
    if not 0 < size < config.hidden_size:
        raise UsageError(
            f"`sparsity` {sparsity:g} leaves {size} of {config.hidden_size} hidden dimensions",
            f"they go in steps of {step} here",
        )
    return replace(config, hidden_size=size)


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
