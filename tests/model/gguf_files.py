"""Small GGUF files written from transformers models by llama.cpp's conventions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

_ARCH = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,  # GGUF has one architecture for both
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def write_gguf(
    path: Path,
    model: Any,
    extra: dict[str, Any] | None = None,
    skip: frozenset[str] = frozenset(),
    blocks: str = "",
) -> Path:
    """Write `model` as fp32 GGUF. extra: tensors to add. skip: GGUF tensor names to leave out.
    blocks: the type that the layers' matrices are quantized to (by the gguf package).
    """
    config = model.config
    arch = _ARCH[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _add_sizes(writer, config)
    _add_attention(writer, config)
    _add_rope(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    for name in ("bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(getattr(config, f"{name}_token_id"))
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        base, _, kind = name.rpartition(".")
        stored = f"{names.get_name(base)}.{kind}"
        if stored in skip:
            continue
        array = _as_llama_cpp(name, tensor, config)
        if blocks and name.endswith("_proj.weight"):
            packed = gguf.GGMLQuantizationType[blocks]
            writer.add_tensor(stored, gguf.quantize(array, packed), raw_dtype=packed)
        else:
            writer.add_tensor(stored, array)
    for name, tensor in {**_rope_tensors(config), **(extra or {})}.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: Any) -> dict[str, Any]:
    """The rotary parameters of the layers with full attention."""
    params = config.rope_parameters
    return params.get("full_attention", params)


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type in ("llama", "mistral"):
        writer.add_vocab_size(config.vocab_size)
    if config.model_type != "phi3":
        writer.add_key_length(_head_dim(config))
        writer.add_value_length(_head_dim(config))


def _add_attention(writer: gguf.GGUFWriter, config: Any) -> None:
    window = getattr(config, "sliding_window", None)
    if window or config.model_type == "phi3":
        writer.add_sliding_window(window or 0)
    if config.model_type in ("qwen2", "gemma3_text") and window:
        slides = [kind == "sliding_attention" for kind in config.layer_types]
        writer.add_sliding_window_pattern(slides)
    if config.model_type == "gemma3_text":
        writer.add_attention_scale(config.query_pre_attn_scalar**-0.5)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type in ("llama", "mistral", "phi3"):
        fraction = rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(_head_dim(config) * fraction))
    if config.model_type == "gemma3_text":
        local = config.rope_parameters["sliding_attention"]["rope_theta"]
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", local)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if config.model_type == "phi3":
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        if rope["rope_type"] == "longrope":
            scale = config.max_position_embeddings / original
            writer.add_rope_scaling_attn_factors(
                math.sqrt(1 + math.log(scale) / math.log(original))
            )


def _rope_tensors(config: Any) -> dict[str, np.ndarray]:
    rope = _rope(config)
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32)
            for kind in ("long", "short")
        }
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_divisors(rope, _head_dim(config))}
    return {}


def _llama3_divisors(rope: dict[str, Any], dim: int) -> np.ndarray:
    """What each frequency is divided by, band by band of wavelengths."""
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    out = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, np.float32)


def _as_llama_cpp(name: str, tensor: torch.Tensor, config: Any) -> np.ndarray:
    array = tensor.numpy().astype(np.float32)
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        return array + 1
    if config.model_type in ("llama", "mistral"):
        if ".q_proj." in name:
            return _interleave(array, config.num_attention_heads)
        if ".k_proj." in name:
            return _interleave(array, config.num_key_value_heads)
    return array


def _interleave(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + D/2 of each head become neighbours, as llama.cpp's rotation wants them."""
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(array.shape))
