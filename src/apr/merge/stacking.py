"""config.json of a model whose layers come from several places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from apr.common.errors import UsageError
from apr.model.families import config_from_hf

Config = Mapping[str, Any]
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
# Lists whose length says nothing about layers, and lists of the numbers of layers.
_NOT_BY_LAYER = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
_LAYER_NUMBERS = ("mlp_only_layers", "cross_attention_layers")
_WINDOW = ("sliding_window", "use_sliding_window")
# Families whose layers may differ in what they see, with rules of their own where `layer_types`
# is left out.
_TYPED = ("qwen2", "qwen3", "gemma3_text")


class Origin(NamedTuple):
    """Where a layer comes from: layer `number` of the `layers` of a model called `label`."""

    label: str
    config: Config
    layers: int
    number: int


def stacked_config(donor: Config, stack: Sequence[Origin]) -> dict[str, Any]:
    """The donor's configuration, with what is said layer by layer (`layer_types` and the like)
    taken from the models the layers come from.

    Raises UsageError where a model does not say what another says of each of its layers, or where
    layers are of different width.
    """
    config = _stacked(donor, stack)
    if isinstance(donor.get("text_config"), dict):
        inner = [origin._replace(config=_text(origin.config)) for origin in stack]
        config["text_config"] = _stacked(donor["text_config"], inner)
    return config


def _text(config: Config) -> Config:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _stacked(donor: Config, stack: Sequence[Origin]) -> dict[str, Any]:
    config = dict(donor)
    for origin in stack:
        width, other = donor.get("hidden_size"), origin.config.get("hidden_size")
        if None not in (width, other) and width != other:
            raise UsageError(
                f"layers of {origin.label} are {other} wide, the others {width}",
                "only layers of one width can be stacked",
            )
    counts = [key for key in _COUNTS if key in config]
    if not counts and "text_config" not in config:
        counts = ["num_hidden_layers"]
    config |= dict.fromkeys(counts, len(stack))
    for key in _LAYER_NUMBERS:
        if any(origin.config.get(key) for origin in stack):
            config[key] = [i for i, o in enumerate(stack) if o.number in (o.config.get(key) or ())]
    for key in dict.fromkeys(key for origin in stack for key in origin.config):
        if key != "layer_types" and any(_entry(origin, key) is not None for origin in stack):
            config |= _list_of_entries(donor, stack, key)
    return config | _layer_types(donor, config, stack)


def _entry(origin: Origin, key: str) -> Any:
    """What a model says of one layer; None if it has no list with an entry for each layer."""
    value = origin.config.get(key)
    if key in _NOT_BY_LAYER or not isinstance(value, list) or len(value) != origin.layers:
        return None
    return value[origin.number]


def _list_of_entries(donor: Config, stack: Sequence[Origin], key: str) -> dict[str, Any]:
    entries = [_entry(origin, key) for origin in stack]
    said = [entry for entry in entries if entry is not None]
    if len(said) == len(entries):
        return {key: entries}
    if key not in donor and all(entry == said[0] for entry in said):
        return {}  # said of all layers alike: what leaving it out means
    silent = next(o for o, entry in zip(stack, entries, strict=True) if entry is None)
    raise UsageError(
        f"config.json of {silent.label} does not say `{key}` of each of its {silent.layers} layers",
        "other models in the stack do: add it there",
    )


def _layer_types(donor: Config, config: Config, stack: Sequence[Origin]) -> dict[str, Any]:
    """`layer_types` of the stack, and the window it speaks of, where they are needed."""
    if donor.get("model_type") not in _TYPED:
        has = any(_entry(origin, "layer_types") is not None for origin in stack)
        return _list_of_entries(donor, stack, "layer_types") if has else {}
    models = [config_from_hf(origin.config) for origin in stack]
    slides = [
        bool(model.sliding_layers and model.sliding_layers[origin.number])
        for model, origin in zip(models, stack, strict=True)
    ]
    found = {"layer_types": ["sliding_attention" if s else "full_attention" for s in slides]}
    if "layer_types" not in donor:
        alone = config_from_hf(config).sliding_layers or (False,) * len(stack)
        if list(alone) == slides:
            return {}
    if any(slides) and config_from_hf(donor).sliding_window is None:
        windowed = stack[slides.index(True)].config
        return {**found, **{key: windowed[key] for key in _WINDOW if key in windowed}}
    return found
