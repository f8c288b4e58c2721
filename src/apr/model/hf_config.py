"""`config.json` of Hugging Face folders to `ModelConfig` and back.

Reads what transformers 4 wrote (`rope_theta`, `rope_scaling`) and what transformers 5 writes
(`rope_parameters`, per layer type for Gemma 3); writes the older form, which both load.
Anything that would change the result and is not supported is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from apr.errors import UsageError
from apr.model.config import ModelConfig, RopeScaling

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
    hidden, heads = _size(merged, "hidden_size"), _size(merged, "num_attention_heads")
    kv_heads = _size(merged, "num_key_value_heads", heads)
    if heads % kv_heads:
        _refuse(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = _size(merged, "head_dim", hidden // heads)
    layers, max_position = (
        _size(merged, "num_hidden_layers"),
        _size(merged, "max_position_embeddings"),
    )
    window, sliding = _sliding(merged, family, layers)
    return ModelConfig(
        family=family,
        vocab_size=_size(merged, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(merged, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        norm_eps=float(merged["rms_norm_eps"]),
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
        **_rope_fields(merged, family, head_dim, max_position, bool(sliding)),
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
        _refuse(f"a {cfg.family} model with qkv_bias {cfg.qkv_bias} has no Hugging Face form")
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
    return config | _rope_to_hf(cfg) | _sliding_to_hf(cfg) | _gemma_to_hf(cfg)


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise UsageError(f"model configuration: {message}", hint)


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
    if model_type not in _MODEL_TYPES:
        known = ", ".join(KNOWN_FAMILIES)
        named = "no model_type" if model_type is None else f"architecture {model_type!r}"
        _refuse(f"{named} is not supported", f"supported architectures: {known}")
    return _MODEL_TYPES[model_type]


def _refuse_unsupported(config: Mapping[str, Any], family: str) -> None:
    for key, meaning in _REFUSED_WHEN_TRUE.items():
        if config.get(key):
            _refuse(f"{key} = {_short(config[key])} ({meaning}) is not supported")
    # Qwen2 always has biases on q, k and v, whatever this key says; elsewhere it adds one to o.
    if family != "qwen2" and config.get("attention_bias"):
        _refuse("attention_bias (biases on all attention projections) is not supported")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        said = "is missing" if value is None else f"is {_short(value)}, not a positive integer"
        _refuse(f"{key} {said}")
    return value


def _number(params: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = params.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        said = "is missing" if value is None else f"is {_short(value)}, not a positive number"
        _refuse(f"rotary embedding: {key} {said}")
    return float(value)


def _token_ids(config: Mapping[str, Any], key: str) -> list[int | None]:
    value = config.get(key)
    ids = value if isinstance(value, list) and value else [value]
    # Some configs write -1 for "none".
    return [i if isinstance(i, int) and i >= 0 else None for i in ids]


def _activation(config: Mapping[str, Any], family: str) -> Literal["silu", "gelu_tanh"]:
    key = "hidden_activation" if family == "gemma3" else "hidden_act"
    name = config[key]
    if name not in _ACTIVATIONS:
        _refuse(f"{key} {name!r} is not supported", f"supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _gemma_options(config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    scalar = _size(config, "query_pre_attn_scalar")
    cap = config.get("final_logit_softcapping")
    return {
        "attention_scale": None if scalar == head_dim else scalar**-0.5,
        "logit_softcap": None if cap is None else float(cap),
    }


def _gemma_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.family != "gemma3":
        if cfg.attention_scale is not None or cfg.logit_softcap is not None:
            _refuse(f"a {cfg.family} model with attention_scale or logit_softcap has no HF form")
        return {}
    scalar = cfg.head_dim if cfg.attention_scale is None else cfg.attention_scale**-2
    if abs(scalar - round(scalar)) > 1e-6 * scalar:
        _refuse(f"attention_scale {cfg.attention_scale} is not 1 / sqrt(an integer)")
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
    return _size({"sliding_window": window}, "sliding_window"), slides


def _sliding_layers(
    config: Mapping[str, Any], family: str, layers: int, windowed: bool
) -> tuple[bool, ...]:
    types = config.get("layer_types")
    if types is not None:
        unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
        if unknown:
            _refuse(f"layer_types names {unknown[0]!r}, which is not supported")
        if len(types) != layers:
            _refuse(f"layer_types has {len(types)} entries for {layers} layers")
        if family in ("qwen2", "qwen3", "gemma3"):
            return tuple(kind == "sliding_attention" for kind in types)
        if family == "llama" and "sliding_attention" in types:
            _refuse("layer_types with sliding_attention is not supported in a llama model")
        if family == "mistral" and len(set(types)) > 1:
            _refuse("layer_types that mixes kinds is not supported in a mistral model")
    if family in ("mistral", "phi3"):
        return (windowed,) * layers
    if family == "gemma3":
        pattern = _size(config, "sliding_window_pattern")
        return tuple(windowed and (i + 1) % pattern != 0 for i in range(layers))
    if family in ("qwen2", "qwen3"):
        first = config["max_window_layers"]
        return tuple(windowed and i >= first for i in range(layers))
    return (False,) * layers


def _sliding_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    slides = cfg.sliding_layers or (False,) * cfg.num_layers
    if cfg.family in ("mistral", "phi3", "llama"):
        if any(slides) and (cfg.family == "llama" or not all(slides)):
            _refuse(f"a {cfg.family} model with these sliding layers has no Hugging Face form")
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


# Rotary embedding ---------------------------------------------------------------------------


def _rope_fields(
    config: Mapping[str, Any], family: str, head_dim: int, max_position: int, slides: bool
) -> dict[str, Any]:
    """rope_theta, rope_local_theta, rope_scaling and rotary_dim of `ModelConfig`."""
    params, local = _rope_parameters(config, family)
    fraction = _number(params, "partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if fraction != 1.0 and family != "phi3":
        _refuse(f"partial_rotary_factor {fraction} is not supported in a {family} model")
    rotary = int(head_dim * fraction)
    if rotary % 2 or not 0 < rotary <= head_dim:
        _refuse(f"the rotary dimension {rotary} of head_dim {head_dim} is not even and within it")
    if params.get("mrope_section"):
        _refuse("mrope_section (multimodal rotary embedding) is not supported")
    return {
        "rope_theta": _number(params, "rope_theta", config["rope_theta"]),
        "rope_local_theta": local if slides else None,
        "rope_scaling": _scaling(params, config, family, rotary, max_position),
        "rotary_dim": None if rotary == head_dim else rotary,
    }


def _rope_parameters(config: Mapping[str, Any], family: str) -> tuple[dict[str, Any], float | None]:
    """The rotary parameters of full-attention layers, and Gemma's base for sliding ones."""
    given = config.get("rope_parameters") or {}
    if family != "gemma3":
        params = given or config.get("rope_scaling") or {}
        if "full_attention" in params:
            _refuse("rope_parameters per layer type is only supported for gemma3")
        return dict(params), None
    sliding = given.get("sliding_attention") or {}
    if sliding.get("rope_type", "default") != "default":
        _refuse(f"rope_type {sliding['rope_type']!r} on sliding layers is not supported")
    full = given.get("full_attention") or config.get("rope_scaling") or {}
    if given and not {"full_attention", "sliding_attention"} & set(given):
        _refuse("rope_parameters of a gemma3 model must be given per layer type")
    return dict(full), _number(sliding, "rope_theta", config["rope_local_base_freq"])


def _scaling(
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    family: str,
    rotary: int,
    max_position: int,
) -> RopeScaling | None:
    kind = params.get("rope_type") or params.get("type") or "default"
    # Early Phi-3 configs call LongRoPE by other names.
    if kind == "su" or (family == "phi3" and kind == "yarn"):
        kind = "longrope"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=_number(params, "factor"))
    outer = config.get("original_max_position_embeddings")
    inner = params.get("original_max_position_embeddings")
    original = (outer or inner) if family == "phi3" else (inner or outer)
    original = _size(
        {"original_max_position_embeddings": original or max_position},
        "original_max_position_embeddings",
    )
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=_number(params, "factor"),
            original_max_position=original,
            low_freq_factor=_number(params, "low_freq_factor"),
            high_freq_factor=_number(params, "high_freq_factor"),
        )
    factor = _number(params, "factor", max_position / original)
    if kind == "yarn":
        return RopeScaling(
            "yarn",
            factor=factor,
            original_max_position=original,
            beta_fast=_number(params, "beta_fast", 32.0),
            beta_slow=_number(params, "beta_slow", 1.0),
            attention_factor=_yarn_attention(params, factor),
            truncate=bool(params.get("truncate", True)),
        )
    if kind == "longrope":
        attention = params.get("attention_factor")
        return RopeScaling(
            "longrope",
            factor=factor,
            original_max_position=original,
            attention_factor=None if attention is None else float(attention),
            short_factor=_factors(params, "short_factor", rotary),
            long_factor=_factors(params, "long_factor", rotary),
        )
    supported = "default, linear, llama3, yarn, longrope"
    _refuse(f"rope_type {kind!r} is not supported", f"supported: {supported}")


def _yarn_attention(params: Mapping[str, Any], factor: float) -> float | None:
    """The explicit attention factor, or DeepSeek's ratio of two mscales; None: the paper's."""
    if params.get("attention_factor") is not None:
        return _number(params, "attention_factor")
    numerator, denominator = params.get("mscale"), params.get("mscale_all_dim")
    if not numerator or not denominator or factor <= 1:
        return None
    log = 0.1 * math.log(factor)
    return (log * numerator + 1.0) / (log * denominator + 1.0)


def _factors(params: Mapping[str, Any], key: str, rotary: int) -> tuple[float, ...]:
    values = params.get(key)
    if not isinstance(values, list) or len(values) != rotary // 2:
        _refuse(f"rotary embedding: {key} must be a list of {rotary // 2} numbers")
    return tuple(float(v) for v in values)


def _rope_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_theta": cfg.rope_theta, "rope_scaling": _scaling_to_hf(cfg)}
    if cfg.family == "gemma3":
        out["rope_local_base_freq"] = cfg.rope_local_theta or 10000.0
    if cfg.family == "phi3":
        fraction = (cfg.rotary_dim or cfg.head_dim) / cfg.head_dim
        # The reader floors the product: make sure it floors to the dimension we mean.
        if int(cfg.head_dim * fraction) != (cfg.rotary_dim or cfg.head_dim):
            fraction = math.nextafter(fraction, 1.0)
        out["partial_rotary_factor"] = fraction
        original = cfg.rope_scaling.original_max_position if cfg.rope_scaling else None
        out["original_max_position_embeddings"] = original or cfg.max_position
    elif cfg.rotary_dim is not None:
        _refuse(f"a {cfg.family} model with a partial rotary embedding has no Hugging Face form")
    return out


def _scaling_to_hf(cfg: ModelConfig) -> dict[str, Any] | None:
    scaling = cfg.rope_scaling
    if scaling is None:
        return None
    if cfg.family == "phi3" and scaling.kind != "longrope":
        _refuse(f"a phi3 model with {scaling.kind} rotary scaling has no Hugging Face form")
    out: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        out["original_max_position_embeddings"] = scaling.original_max_position
    if scaling.kind == "llama3":
        out["low_freq_factor"] = scaling.low_freq_factor
        out["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        out["beta_fast"], out["beta_slow"] = scaling.beta_fast, scaling.beta_slow
        if not scaling.truncate:
            out["truncate"] = False
    if scaling.kind == "longrope":
        out["short_factor"] = list(scaling.short_factor or ())
        out["long_factor"] = list(scaling.long_factor or ())
    if scaling.kind in ("yarn", "longrope") and scaling.attention_factor is not None:
        out["attention_factor"] = scaling.attention_factor
    return _phi3_scaling_to_hf(cfg, out) if cfg.family == "phi3" else out


def _phi3_scaling_to_hf(cfg: ModelConfig, scaling: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 wants exactly these three keys and reads the rest from the top level."""
    implied = cfg.max_position / scaling["original_max_position_embeddings"]
    kept = {"short_factor", "long_factor", "attention_factor"}
    if scaling["factor"] != implied:
        kept.add("factor")
    return {"type": "longrope"} | {k: v for k, v in scaling.items() if k in kept}
