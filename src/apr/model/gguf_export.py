"""`ModelConfig` and weights in GGUF's terms: the inverse of `gguf_config` and of `load`'s layout.

Keys, and what each architecture does with them, follow llama.cpp's loader.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch

from apr.common.errors import UsageError
from apr.model.config import ModelConfig, RopeScaling
from apr.model.gguf_config import ROPE_TENSORS
from apr.model.rope import inverse_frequencies, scaled_frequencies

# Families whose sliding windows llama.cpp's graphs ignore.
_WINDOW_IGNORED = ("mistral", "qwen2", "qwen3", "phi3")
_GEMMA3_PERIOD = 6  # built into llama.cpp: every sixth layer sees everything
_GEMMA3_LOCAL = 10000.0


def gguf_architecture(cfg: ModelConfig) -> str:
    """The name of the family in GGUF."""
    return "llama" if cfg.family == "mistral" else cfg.family


def config_to_gguf(cfg: ModelConfig) -> dict[str, Any]:
    """The metadata "<architecture>.*" from which `config_from_gguf` reads `cfg`.

    Llama 3's rotary scaling and LongRoPE need the tensors of `rope_tensors` as well. Token ids
    belong to the tokenizer's metadata. Raises UsageError for what GGUF has no key for.
    """
    if cfg.attention_softcap is not None:
        _refuse("attention_softcap has no key in GGUF for this architecture")
    keys: dict[str, Any] = {
        "vocab_size": cfg.vocab_size,
        "context_length": cfg.max_position,
        "embedding_length": cfg.hidden_size,
        "block_count": cfg.num_layers,
        "feed_forward_length": cfg.intermediate_size,
        "attention.head_count": cfg.num_heads,
        "attention.head_count_kv": cfg.num_kv_heads,
        "attention.key_length": cfg.head_dim,
        "attention.value_length": cfg.head_dim,
        "attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "rope.dimension_count": cfg.rotary_dim or cfg.head_dim,
        "rope.freq_base": cfg.rope_theta,
    }
    if cfg.rope_local_theta is not None:
        keys["rope.freq_base_swa"] = cfg.rope_local_theta
    if cfg.family == "gemma3" or cfg.attention_scale is not None:
        # Without it readers guess the scale of Gemma's 27B model from its size.
        keys["attention.scale"] = cfg.attention_scale or cfg.head_dim**-0.5
    if cfg.logit_softcap is not None:
        keys["final_logit_softcapping"] = cfg.logit_softcap
    keys |= _sliding_keys(cfg) | _rope_keys(cfg)
    return {f"{gguf_architecture(cfg)}.{key}": value for key, value in keys.items()}


def rope_tensors(cfg: ModelConfig) -> dict[str, torch.Tensor]:
    """The rotary factors GGUF keeps as tensors, fp32 (rotary_dim / 2,) each; mostly none.

    Raises UsageError for an architecture whose GGUF readers expect no such tensor.
    """
    scaling = cfg.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "longrope"):
        return {}
    if gguf_architecture(cfg) not in ("llama", "phi3"):
        _refuse(f"{cfg.family} files cannot hold the factors of {scaling.kind} rotary scaling")
    if scaling.kind == "longrope" and not _same_factors(cfg, scaling):
        factors = (scaling.long_factor, scaling.short_factor)
        return {
            name: torch.tensor(values, dtype=torch.float32)
            for name, values in zip(ROPE_TENSORS[1:], factors, strict=True)
        }
    plain, _ = scaled_frequencies(cfg.rope_theta, cfg.rotary_dim or cfg.head_dim, None)
    scaled, _ = inverse_frequencies(cfg)
    return {ROPE_TENSORS[0]: plain / scaled}


def to_gguf_layout(name: str, tensor: torch.Tensor, cfg: ModelConfig) -> torch.Tensor:
    """A parameter, by its Hugging Face name, as GGUF stores it: one-dimensional ones in fp32,
    Gemma's norms with 1 added, rows of q and k in the llama architecture interleaved.
    """
    if tensor.ndim == 1:
        tensor = tensor.float()
    if cfg.norm_offset and name.endswith("norm.weight"):
        return tensor + cfg.norm_offset
    if gguf_architecture(cfg) == "llama":
        if ".q_proj." in name:
            return permute(tensor, cfg.num_heads)
        if ".k_proj." in name:
            return permute(tensor, cfg.num_kv_heads)
    return tensor


def permute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows i and i + D/2 of each head become neighbours (2i, 2i + 1); `load.unpermute` undoes it.

    tensor: (heads * D, ...), weight or bias.
    """
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])  # (heads, 2, D / 2, ...)
    return halves.transpose(1, 2).reshape(tensor.shape)


def llama_cpp_limits(cfg: ModelConfig) -> list[str]:
    """What llama.cpp would compute otherwise than the model was trained, one line each."""
    notes = []
    if cfg.sliding_window and cfg.family in _WINDOW_IGNORED:
        notes.append(
            f"llama.cpp ignores the sliding window of {cfg.family} models: beyond "
            f"{cfg.sliding_window} tokens its results differ"
        )
    if cfg.family != "gemma3":
        return notes
    period = _GEMMA3_PERIOD
    if cfg.sliding_layers not in (None, _regular(period, cfg.num_layers)):
        period = _period(cfg.sliding_layers or ()) or 0
    if not period:
        notes.append("llama.cpp does not read which layers of this gemma3 model have a window")
    elif (period, cfg.rope_local_theta or _GEMMA3_LOCAL) != (_GEMMA3_PERIOD, _GEMMA3_LOCAL):
        notes.append(
            f"older versions of llama.cpp assume gemma3's usual period of {_GEMMA3_PERIOD} layers "
            f"and local rope base of {_GEMMA3_LOCAL:.0f}"
        )
    if cfg.attention_scale is not None and cfg.num_layers != 62:
        notes.append("llama.cpp scales gemma3's attention by the head dimension, not as asked")
    return notes


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"this model has no GGUF form: {message}")


def _sliding_keys(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.sliding_window is None or cfg.sliding_layers is None:
        # llama.cpp guesses a window for Phi-3 files that do not mention one.
        return {"attention.sliding_window": 0} if cfg.family == "phi3" else {}
    keys: dict[str, Any] = {"attention.sliding_window": cfg.sliding_window}
    if not all(cfg.sliding_layers) or cfg.family == "gemma3":
        pattern = _period(cfg.sliding_layers) or list(cfg.sliding_layers)
        keys["attention.sliding_window_pattern"] = pattern
    return keys


def _period(slides: tuple[bool, ...]) -> int | None:
    """p where exactly every p-th layer sees everything; None for other patterns."""
    if all(slides):
        return None
    period = slides.index(False) + 1
    return period if slides == _regular(period, len(slides)) else None


def _regular(period: int, layers: int) -> tuple[bool, ...]:
    return tuple((i + 1) % period != 0 for i in range(layers))


def _rope_keys(cfg: ModelConfig) -> dict[str, Any]:
    scaling = cfg.rope_scaling
    if scaling is None or scaling.kind == "llama3":
        return {}
    if scaling.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    original = {"rope.scaling.original_context_length": scaling.original_max_position}
    if scaling.kind == "longrope":
        if _same_factors(cfg, scaling):
            return {}
        _, attention = inverse_frequencies(cfg)
        kind = {} if cfg.family == "phi3" else {"rope.scaling.type": "longrope"}
        return {**kind, **original, "rope.scaling.attn_factor": attention}
    if not scaling.truncate:
        _refuse("its YaRN scaling has truncate = false, which GGUF cannot say")
    keys: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling.factor,
        **original,
        "rope.scaling.yarn_beta_fast": scaling.beta_fast,
        "rope.scaling.yarn_beta_slow": scaling.beta_slow,
    }
    if scaling.attention_factor is not None:
        # Readers multiply by the paper's factor.
        paper = 0.1 * math.log(scaling.factor) + 1.0
        keys["rope.scaling.attn_factor"] = scaling.attention_factor / paper
    return keys


def _same_factors(cfg: ModelConfig, scaling: RopeScaling) -> bool:
    """LongRoPE with one set of factors and no attention factor: what Llama 3's tensor says."""
    return (
        cfg.family != "phi3"
        and scaling.short_factor == scaling.long_factor
        and inverse_frequencies(cfg)[1] == 1.0
    )
