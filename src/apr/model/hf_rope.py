"""The rotary embedding in `config.json`, as transformers 4 and 5 write it, and back; and checked
values out of such a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from apr.common.errors import UsageError
from apr.model.config import ModelConfig, RopeScaling


def refuse(message: str, hint: str = "") -> NoReturn:
    """Raise UsageError about this configuration."""
    raise UsageError(f"model configuration: {message}", hint)


def short(value: Any) -> str:
    """A value as a one-line message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The positive integer under a key; a null or absent one is the default, or refused."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        said = "is missing" if value is None else f"is {short(value)}, not a positive integer"
        refuse(f"{key} {said}")
    return value


def number(params: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The positive number under a key; a null or absent one is the default, or refused."""
    value = params.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        said = "is missing" if value is None else f"is {short(value)}, not a positive number"
        refuse(f"{key} {said}")
    return float(value)


def mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; empty where it is null or absent."""
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        refuse(f"{key} is {short(value)}, not an object")
    return dict(value or {})


def rope_fields(
    config: Mapping[str, Any], family: str, head_dim: int, max_position: int, slides: bool
) -> dict[str, Any]:
    """rope_theta, rope_local_theta, rope_scaling and rotary_dim of `ModelConfig`."""
    params, local = _rope_parameters(config, family)
    fraction = number(params, "partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if fraction != 1.0 and family != "phi3":
        refuse(f"partial_rotary_factor {fraction} is not supported in a {family} model")
    rotary = int(head_dim * fraction)
    if rotary % 2 or not 0 < rotary <= head_dim:
        refuse(f"the rotary dimension {rotary} of head_dim {head_dim} is not even and within it")
    if params.get("mrope_section"):
        refuse("mrope_section (multimodal rotary embedding) is not supported")
    return {
        "rope_theta": number(params, "rope_theta", config["rope_theta"]),
        "rope_local_theta": local if slides else None,
        "rope_scaling": _scaling(params, config, family, rotary, max_position),
        "rotary_dim": None if rotary == head_dim else rotary,
    }


def _rope_parameters(config: Mapping[str, Any], family: str) -> tuple[dict[str, Any], float | None]:
    """The rotary parameters of full-attention layers, and Gemma's base for sliding ones."""
    given, older = mapping(config, "rope_parameters"), mapping(config, "rope_scaling")
    if family != "gemma3":
        if "full_attention" in given:
            refuse("rope_parameters per layer type is only supported for gemma3")
        return given or older, None
    sliding = mapping(given, "sliding_attention")
    if sliding.get("rope_type", "default") != "default":
        refuse(f"rope_type {short(sliding['rope_type'])} on sliding layers is not supported")
    if given and not {"full_attention", "sliding_attention"} & set(given):
        refuse("rope_parameters of a gemma3 model must be given per layer type")
    full = mapping(given, "full_attention") or older
    return full, number(sliding, "rope_theta", config["rope_local_base_freq"])


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
        return RopeScaling("linear", factor=number(params, "factor"))
    outer = config.get("original_max_position_embeddings")
    inner = params.get("original_max_position_embeddings")
    original = (outer or inner) if family == "phi3" else (inner or outer)
    original = size(
        {"original_max_position_embeddings": original or max_position},
        "original_max_position_embeddings",
    )
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=number(params, "factor"),
            original_max_position=original,
            low_freq_factor=number(params, "low_freq_factor"),
            high_freq_factor=number(params, "high_freq_factor"),
        )
    factor = number(params, "factor", max_position / original)
    if kind == "yarn":
        return RopeScaling(
            "yarn",
            factor=factor,
            original_max_position=original,
            beta_fast=number(params, "beta_fast", 32.0),
            beta_slow=number(params, "beta_slow", 1.0),
            attention_factor=_yarn_attention(params, factor),
            truncate=bool(params.get("truncate", True)),
        )
    if kind == "longrope":
        explicit = params.get("attention_factor") is not None
        return RopeScaling(
            "longrope",
            factor=factor,
            original_max_position=original,
            attention_factor=number(params, "attention_factor") if explicit else None,
            short_factor=_factors(params, "short_factor", rotary),
            long_factor=_factors(params, "long_factor", rotary),
        )
    supported = "default, linear, llama3, yarn, longrope"
    refuse(f"rope_type {short(kind)} is not supported", f"supported: {supported}")


def _yarn_attention(params: Mapping[str, Any], factor: float) -> float | None:
    """The explicit attention factor, or DeepSeek's ratio of two mscales; None: the paper's."""
    if params.get("attention_factor") is not None:
        return number(params, "attention_factor")
    if not params.get("mscale") or not params.get("mscale_all_dim") or factor <= 1:
        return None
    numerator, denominator = number(params, "mscale"), number(params, "mscale_all_dim")
    log = 0.1 * math.log(factor)
    return (log * numerator + 1.0) / (log * denominator + 1.0)


def _factors(params: Mapping[str, Any], key: str, rotary: int) -> tuple[float, ...]:
    values = params.get(key)
    if not isinstance(values, list) or len(values) != rotary // 2:
        refuse(f"{key} must be a list of {rotary // 2} numbers")
    return tuple(number({key: v}, key) for v in values)


def rope_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json` about rotary embedding."""
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
        refuse(f"a {cfg.family} model with a partial rotary embedding has no Hugging Face form")
    return out


def _scaling_to_hf(cfg: ModelConfig) -> dict[str, Any] | None:
    scaling = cfg.rope_scaling
    if scaling is None:
        return None
    if cfg.family == "phi3" and scaling.kind != "longrope":
        refuse(f"a phi3 model with {scaling.kind} rotary scaling has no Hugging Face form")
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
