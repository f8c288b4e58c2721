"""GGUF metadata to `ModelConfig`.

Keys and their meaning follow llama.cpp's converter and loader. What Hugging Face says in
config.json and GGUF does not say at all follows from the architecture (Gemma's norms, Qwen2's
biases) or from which tensors there are (a tied output layer has none).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import numpy as np
import torch

from apr.common.errors import UsageError
from apr.model.config import ModelConfig, RopeScaling
from apr.model.hf_config import KNOWN_FAMILIES, gemma_fields
from apr.model.rope import extended_context, scaled_frequencies

ReadTensor = Callable[[str], torch.Tensor]
# llama.cpp calls Mistral's models llama; the name of the architecture decides the tensor layout.
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "phi3")
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Metadata that would change the result, unless it holds one of the neutral values.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attn_logit_softcapping": (0.0,),
    "attention.causal": (True,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
}


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensor_names: Collection[str],
    read_tensor: ReadTensor | None = None,
) -> ModelConfig:
    """The model a GGUF file's metadata and list of tensors describe.

    read_tensor: gives a tensor by name; needed by files that keep rotary factors as tensors
    (Llama 3.1 and later, Phi-3 with long context). Raises UsageError naming the architecture or
    the key that is unknown, missing or unsupported.
    """
    arch = _architecture(metadata)
    keys = _Keys(metadata, arch)
    for key, neutral in _REFUSED.items():
        value = keys.get(key)
        if value is not None and value not in neutral:
            _refuse(f"{arch}.{key} = {value} is not supported")
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    kv_heads = keys.size("attention.head_count_kv", heads)
    if heads % kv_heads:
        _refuse(
            f"{arch}.attention.head_count {heads} is not a multiple of head_count_kv {kv_heads}"
        )
    head_dim = keys.size("attention.key_length", hidden // heads)
    if keys.size("attention.value_length", head_dim) != head_dim:
        _refuse(f"{arch}.attention.value_length differs from key_length, which is not supported")
    layers = keys.size("block_count")
    window, sliding = _sliding(keys, arch, layers)
    capped = bool(keys.get("final_logit_softcapping"))
    rope = _rope_fields(keys, arch, head_dim, bool(sliding), tensor_names, read_tensor)
    return ModelConfig(
        family="mistral" if arch == "llama" and sliding else arch,
        vocab_size=_vocab_size(metadata, keys),
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=extended_context(keys.size("context_length"), rope["rope_scaling"]),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        activation="gelu_tanh" if arch == "gemma3" else "silu",
        tie_embeddings="output.weight" not in tensor_names,
        qkv_bias="blk.0.attn_q.bias" in tensor_names,
        fused_projections=arch == "phi3",
        qk_norm=arch in ("qwen3", "gemma3"),
        attention_scale=_attention_scale(keys, arch, hidden, heads, head_dim, layers),
        sliding_window=window,
        sliding_layers=sliding,
        logit_softcap=keys.number("final_logit_softcapping") if capped else None,
        bos_token_id=_token(metadata, "bos"),
        eos_token_ids=_end_tokens(metadata),
        pad_token_id=_token(metadata, "padding"),
        **rope,
        **(gemma_fields(hidden) if arch == "gemma3" else {}),
    )


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise UsageError(f"GGUF metadata: {message}", hint)


class _Keys:
    """Metadata under one architecture's prefix, as plain Python numbers."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        self._metadata, self._arch = metadata, arch

    def get(self, key: str) -> Any:
        value = self._metadata.get(f"{self._arch}.{key}")
        return value.item() if isinstance(value, np.generic) else value

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, list | tuple | np.ndarray):
            if len(value) == 0 or any(one != value[0] for one in value):
                _refuse(f"{self._arch}.{key} differs from layer to layer, which is not supported")
            value = value[0].item() if isinstance(value[0], np.generic) else value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = "is missing" if value is None else f"is {value!r}, not a positive integer"
            _refuse(f"{self._arch}.{key} {said}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            said = "is missing" if value is None else f"is {value!r}, not a positive number"
            _refuse(f"{self._arch}.{key} {said}")
        return _shortest(value)


def _shortest(value: float) -> float:
    """The number somebody wrote before it was stored in 32 bits: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _architecture(metadata: Mapping[str, Any]) -> str:
    arch = metadata.get("general.architecture")
    if arch not in _ARCHITECTURES:
        named = "no general.architecture" if arch is None else f"architecture {arch!r}"
        known = ", ".join(KNOWN_FAMILIES)
        _refuse(f"{named} is not supported", f"supported architectures: {known}")
    return str(arch)


def _vocab_size(metadata: Mapping[str, Any], keys: _Keys) -> int:
    if keys.get("vocab_size") is not None:
        return keys.size("vocab_size")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        _refuse("neither vocab_size nor tokenizer.ggml.tokens is there to tell the vocabulary")
    return len(tokens)


def _token(metadata: Mapping[str, Any], name: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    value = value.item() if isinstance(value, np.generic) else value
    if value is not None and not isinstance(value, int):
        _refuse(f"tokenizer.ggml.{name}_token_id is {value!r}, not an integer")
    return value


def _end_tokens(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """End of text, then end of turn and end of message where the file names them."""
    ids = (_token(metadata, name) for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _attention_scale(
    keys: _Keys, arch: str, hidden: int, heads: int, head_dim: int, layers: int
) -> float | None:
    if keys.get("attention.scale"):
        scale = keys.number("attention.scale")
        return None if math.isclose(scale, head_dim**-0.5, rel_tol=1e-6) else scale
    # GGUF has no query_pre_attn_scalar. Of the Gemma 3 models only the 27B one, known by its
    # 62 layers, scales by hidden / heads instead of the head dimension.
    if arch == "gemma3" and layers == 62 and hidden // heads != head_dim:
        return (hidden // heads) ** -0.5
    return None


def _sliding(keys: _Keys, arch: str, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    if not keys.get("attention.sliding_window"):
        return None, None
    window = keys.size("attention.sliding_window")
    # A number p: every p-th layer sees everything. A list: one flag a layer, true for sliding.
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is None:
        pattern = 6 if arch == "gemma3" else 0
    if isinstance(pattern, list | tuple | np.ndarray):
        slides = tuple(bool(flag) for flag in pattern)
        if len(slides) != layers:
            _refuse(f"{arch}.attention.sliding_window_pattern has {len(slides)} entries")
    elif not isinstance(pattern, int):
        _refuse(f"{arch}.attention.sliding_window_pattern is {pattern!r}")
    else:
        slides = tuple(pattern == 0 or i % pattern < pattern - 1 for i in range(layers))
    return (window, slides) if any(slides) else (None, None)


# Rotary embedding ---------------------------------------------------------------------------


def _rope_fields(
    keys: _Keys,
    arch: str,
    head_dim: int,
    slides: bool,
    tensor_names: Collection[str],
    read_tensor: ReadTensor | None,
) -> dict[str, Any]:
    rotary = keys.size("rope.dimension_count", head_dim)
    if rotary % 2 or rotary > head_dim or (rotary != head_dim and arch != "phi3"):
        _refuse(f"{arch}.rope.dimension_count {rotary} of head dimension {head_dim}")
    theta = keys.number("rope.freq_base", 1_000_000.0 if arch == "gemma3" else 10000.0)
    local = None
    if arch == "gemma3" and slides:
        local = keys.number("rope.freq_base_swa", 10000.0)
    factors = _rope_tensors(tensor_names, read_tensor, rotary)
    if "rope_freqs.weight" in factors:
        scaling = _from_factors(factors["rope_freqs.weight"], theta, rotary, keys)
    else:
        scaling = _scaling(keys, arch, factors)
    return {
        "rope_theta": theta,
        "rope_local_theta": local,
        "rope_scaling": scaling,
        "rotary_dim": None if rotary == head_dim else rotary,
    }


def _rope_tensors(
    tensor_names: Collection[str], read_tensor: ReadTensor | None, rotary: int
) -> dict[str, torch.Tensor]:
    found = {}
    for name in ROPE_TENSORS:
        if name not in tensor_names:
            continue
        if read_tensor is None:
            raise ValueError(f"this file keeps rotary factors in {name}: pass read_tensor")
        found[name] = read_tensor(name).float()
        if found[name].shape != (rotary // 2,) or not bool((found[name] > 0).all()):
            _refuse(f"tensor {name} must hold {rotary // 2} positive rotary factors")
    return found


def _scaling(keys: _Keys, arch: str, factors: Mapping[str, torch.Tensor]) -> RopeScaling | None:
    kind = keys.get("rope.scaling.type")
    if kind == "longrope" or "rope_factors_long.weight" in factors:
        return _longrope(keys, arch, factors)
    if kind is None and keys.get("rope.scale_linear"):  # how older files say it
        kind = "linear"
        factor = keys.number("rope.scale_linear")
    elif kind in ("linear", "yarn"):
        factor = keys.number("rope.scaling.factor")
    if kind in (None, "none") or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=factor)
    if kind != "yarn":
        supported = "none, linear, yarn, longrope"
        _refuse(f"{arch}.rope.scaling.type {kind!r} is not supported", f"supported: {supported}")
    attention: float | None = None
    if keys.get("rope.scaling.yarn_attn_factor") is not None:
        attention = keys.number("rope.scaling.yarn_attn_factor")
    elif keys.number("rope.scaling.attn_factor", 1.0) != 1.0:
        # llama.cpp multiplies the paper's factor by this one.
        attention = keys.number("rope.scaling.attn_factor") * (0.1 * math.log(factor) + 1.0)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_max_position=keys.size(
            "rope.scaling.original_context_length", keys.size("context_length")
        ),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=attention,
    )


def _longrope(keys: _Keys, arch: str, factors: Mapping[str, torch.Tensor]) -> RopeScaling:
    short, long = factors.get(ROPE_TENSORS[2]), factors.get(ROPE_TENSORS[1])
    if short is None or long is None:
        _refuse(f"{arch} with longrope needs tensors {ROPE_TENSORS[1]} and {ROPE_TENSORS[2]}")
    longest = keys.size("context_length")
    original = keys.size("rope.scaling.original_context_length", longest)
    factor = longest / original
    prescribed = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    return RopeScaling(
        "longrope",
        factor=factor,
        original_max_position=original,
        attention_factor=None if math.isclose(attention, prescribed, rel_tol=1e-6) else attention,
        short_factor=_floats(short),
        long_factor=_floats(long),
    )


def _floats(tensor: torch.Tensor) -> tuple[float, ...]:
    return tuple(_shortest(v) for v in tensor.tolist())


def _from_factors(
    factors: torch.Tensor, theta: float, rotary: int, keys: _Keys
) -> RopeScaling | None:
    """Llama 3's scaling from the divisors of the frequencies, all that its GGUF files keep.

    With the published constants (low 1, high 4, original context 8192) they are recognised; any
    others become a per-frequency scaling that computes the same.
    """
    if bool((factors == 1).all()):
        return None
    llama3 = RopeScaling(
        "llama3",
        factor=_shortest(factors.max().item()),
        original_max_position=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    plain, _ = scaled_frequencies(theta, rotary, None)
    scaled, _ = scaled_frequencies(theta, rotary, llama3)
    if torch.allclose(plain / scaled, factors, rtol=1e-5):
        return llama3
    return RopeScaling(
        "longrope",
        original_max_position=keys.size("context_length"),
        attention_factor=1.0,
        short_factor=_floats(factors),
        long_factor=_floats(factors),
    )
