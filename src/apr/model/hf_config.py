"""`config.json` of Hugging Face folders to `ModelConfig` and back.

Reads what transformers 4 wrote (`rope_theta`, `rope_scaling`) and what transformers 5 writes
(`rope_parameters`, per layer type for Gemma 3); writes the older form, which both load.
Anything that would change the result and is not supported is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from apr.model.config import ModelConfig
from apr.model.hf_rope import number, refuse, rope_fields, rope_to_hf, short, size
from apr.model.rope import extended_context

_MODEL_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
KNOWN_FAMILIES = tuple(dict.fromkeys(_MODEL_TYPES.values()))
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
# What a config.json that leaves a key out means (the defaults of transformers' config classes).
_COMMON_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
    "gemma3": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    "phi3": {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
}
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Keys that turn on something this package does not compute, when they hold a true value.
_REFUSED_WHEN_TRUE = {
    "num_local_experts": "mixture of experts",
    "num_experts": "mixture of experts",
    "n_routed_experts": "mixture of experts",
    "mlp_bias": "biases in the feed-forward layers",
    "use_bidirectional_attention": "bidirectional attention",
    "attn_logit_softcapping": "soft-capped attention scores",
    "quantization_config": "weights quantized by another tool",
}


def config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """The model a parsed `config.json` describes.

    Raises UsageError naming the architecture or the field that is unknown, missing or unsupported.
    """
    raw = _text_part(config)
    family = _family(raw)
    merged = {**_COMMON_DEFAULTS, **_DEFAULTS[family], **raw}
    _refuse_unsupported(merged, family)
    hidden, heads = size(merged, "hidden_size"), size(merged, "num_attention_heads")
    kv_heads = size(merged, "num_key_value_heads", heads)
    if heads % kv_heads:
        refuse(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = size(merged, "head_dim", hidden // heads)
    layers, max_position = (
        size(merged, "num_hidden_layers"),
        size(merged, "max_position_embeddings"),
    )
    window, sliding = _sliding(merged, family, layers)
    rope = rope_fields(merged, family, head_dim, max_position, bool(sliding))
    return ModelConfig(
        family=family,
        vocab_size=size(merged, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=size(merged, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=extended_context(max_position, rope["rope_scaling"]),
        norm_eps=number(merged, "rms_norm_eps"),
        activation=_activation(merged, family),
        tie_embeddings=bool(merged["tie_word_embeddings"]),
        qkv_bias=family == "qwen2",
        fused_projections=family == "phi3",
        qk_norm=family in ("qwen3", "gemma3"),
        sliding_window=window,
        sliding_layers=sliding,
        bos_token_id=_token_ids(merged, "bos_token_id")[0],
        eos_token_ids=tuple(i for i in _token_ids(merged, "eos_token_id") if i is not None),
        pad_token_id=_token_ids(merged, "pad_token_id")[0],
        **rope,
        **(gemma_fields(hidden) if family == "gemma3" else {}),
        **(_gemma_options(merged, head_dim) if family == "gemma3" else {}),
    )


def gemma_fields(hidden_size: int) -> dict[str, Any]:
    """What every Gemma 3 model has in common."""
    return {
        "norm_offset": 1.0,
        "sandwich_norms": True,
        "embedding_scale": math.sqrt(hidden_size),
    }


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers 4.57 and 5 load as this model (token ids included).

    Raises UsageError where Hugging Face has no field for what `cfg` says.
    """
    model_type = "gemma3_text" if cfg.family == "gemma3" else cfg.family
    if cfg.qkv_bias != (cfg.family == "qwen2"):
        refuse(f"a {cfg.family} model with qkv_bias {cfg.qkv_bias} has no Hugging Face form")
    eos: int | list[int] | None = list(cfg.eos_token_ids) or None
    if len(cfg.eos_token_ids) == 1:
        eos = cfg.eos_token_ids[0]
    activation = "silu" if cfg.activation == "silu" else "gelu_pytorch_tanh"
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[cfg.family]],
        "model_type": model_type,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "max_position_embeddings": cfg.max_position,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "hidden_activation" if cfg.family == "gemma3" else "hidden_act": activation,
        "bos_token_id": cfg.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": cfg.pad_token_id,
    }
    # Phi-3 and Qwen2 configs have no head_dim unless it is unusual.
    if cfg.family not in ("phi3", "qwen2") or cfg.head_dim != cfg.hidden_size // cfg.num_heads:
        config["head_dim"] = cfg.head_dim
    return config | rope_to_hf(cfg) | _sliding_to_hf(cfg) | _gemma_to_hf(cfg)


def _text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model inside a multimodal config; token ids of the whole count for it."""
    text = config.get("text_config")
    if config.get("model_type") != "gemma3" or not isinstance(text, Mapping):
        return dict(config)
    shared = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    outer = {key: config[key] for key in shared if config.get(key) is not None}
    return {"model_type": "gemma3_text", **text, **outer}


def _family(config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODEL_TYPES:
        known = ", ".join(KNOWN_FAMILIES)
        named = "no model_type" if model_type is None else f"architecture {model_type!r}"
        refuse(f"{named} is not supported", f"supported architectures: {known}")
    return _MODEL_TYPES[model_type]


def _refuse_unsupported(config: Mapping[str, Any], family: str) -> None:
    for key, meaning in _REFUSED_WHEN_TRUE.items():
        if config.get(key):
            refuse(f"{key} = {short(config[key])} ({meaning}) is not supported")
    # Qwen2 always has biases on q, k and v, whatever this key says; elsewhere it adds one to o.
    if family != "qwen2" and config.get("attention_bias"):
        refuse("attention_bias (biases on all attention projections) is not supported")


def _token_ids(config: Mapping[str, Any], key: str) -> list[int | None]:
    value = config.get(key)
    ids = value if isinstance(value, list) and value else [value]
    # Some configs write -1 for "none".
    return [i if isinstance(i, int) and i >= 0 else None for i in ids]


def _activation(config: Mapping[str, Any], family: str) -> Literal["silu", "gelu_tanh"]:
    key = "hidden_activation" if family == "gemma3" else "hidden_act"
    name = config[key]
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        refuse(f"{key} {name!r} is not supported", f"supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _gemma_options(config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    scalar = size(config, "query_pre_attn_scalar")
    capped = config.get("final_logit_softcapping") is not None
    return {
        "attention_scale": None if scalar == head_dim else scalar**-0.5,
        "logit_softcap": number(config, "final_logit_softcapping") if capped else None,
    }


def _gemma_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.family != "gemma3":
        if cfg.attention_scale is not None or cfg.logit_softcap is not None:
            refuse(f"a {cfg.family} model with attention_scale or logit_softcap has no HF form")
        return {}
    scalar = cfg.head_dim if cfg.attention_scale is None else cfg.attention_scale**-2
    if abs(scalar - round(scalar)) > 1e-6 * scalar:
        refuse(f"attention_scale {cfg.attention_scale} is not 1 / sqrt(an integer)")
    return {"query_pre_attn_scalar": round(scalar), "final_logit_softcapping": cfg.logit_softcap}


# Sliding windows ----------------------------------------------------------------------------


def _sliding(
    config: Mapping[str, Any], family: str, layers: int
) -> tuple[int | None, tuple[bool, ...] | None]:
    """(window, which layers slide), both None where every layer sees everything."""
    window = config.get("sliding_window")
    if family in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        window = None
    slides = _sliding_layers(config, family, layers, window is not None)
    if not any(slides):
        return None, None
    return size({"sliding_window": window}, "sliding_window"), slides


def _sliding_layers(
    config: Mapping[str, Any], family: str, layers: int, windowed: bool
) -> tuple[bool, ...]:
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list):
            refuse(f"layer_types is {short(types)}, not a list")
        unknown = [kind for kind in types if kind not in ("full_attention", "sliding_attention")]
        if unknown:
            refuse(f"layer_types names {short(unknown[0])}, which is not supported")
        if len(types) != layers:
            refuse(f"layer_types has {len(types)} entries for {layers} layers")
        if family in ("qwen2", "qwen3", "gemma3"):
            return tuple(kind == "sliding_attention" for kind in types)
        if family == "llama" and "sliding_attention" in types:
            refuse("layer_types with sliding_attention is not supported in a llama model")
        if family == "mistral" and len(set(types)) > 1:
            refuse("layer_types that mixes kinds is not supported in a mistral model")
    if family in ("mistral", "phi3"):
        return (windowed,) * layers
    if family == "gemma3":
        pattern = size(config, "sliding_window_pattern")
        return tuple(windowed and (i + 1) % pattern != 0 for i in range(layers))
    if family in ("qwen2", "qwen3"):
        if not windowed:
            return (False,) * layers
        first = config["max_window_layers"]
        if not isinstance(first, int):
            refuse(f"max_window_layers is {short(first)}, not an integer")
        return tuple(i >= first for i in range(layers))
    return (False,) * layers


def _sliding_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    slides = cfg.sliding_layers or (False,) * cfg.num_layers
    if cfg.family in ("mistral", "phi3", "llama"):
        if any(slides) and (cfg.family == "llama" or not all(slides)):
            refuse(f"a {cfg.family} model with these sliding layers has no Hugging Face form")
        return {} if cfg.family == "llama" else {"sliding_window": cfg.sliding_window}
    kinds = ["sliding_attention" if s else "full_attention" for s in slides]
    if cfg.family == "gemma3":
        # transformers wants a number even when no layer slides.
        return {"layer_types": kinds, "sliding_window": cfg.sliding_window or 4096}
    return {
        "layer_types": kinds,
        "use_sliding_window": any(slides),
        "sliding_window": cfg.sliding_window,
        "max_window_layers": slides.index(True) if any(slides) else cfg.num_layers,
    }
