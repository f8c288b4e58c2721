"""Tensor names: Hugging Face's and GGUF's, per family.

Names only: some tensors also change their values on the way (llama's rotary rows are permuted,
Gemma's norm weights have 1 added), which is the model loader's business.

Source: the weight names of transformers' models and `gguf.tensor_mapping` (tested against both).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from apr.common.errors import AprError, UsageError

# GGUF stem → Hugging Face stem. Stems lose their ".weight" or ".bias"; {i} is the layer.
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION = {
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
}
_QK_NORMS = {
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
}
_MLP = {
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
_TWO_NORMS = {
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
}
# The same Hugging Face name, post_attention_layernorm, means another norm in Gemma.
_FOUR_NORMS = {
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "blk.{i}.post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}
# Phi-3 keeps q, k, v in one matrix, and gate and up in one that GGUF calls "up".
_FUSED = {
    "blk.{i}.attn_qkv": "model.layers.{i}.self_attn.qkv_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.gate_up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}

_LLAMA = _OUTER | _ATTENTION | _MLP | _TWO_NORMS
FAMILY_TABLES: dict[str, dict[str, str]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | _QK_NORMS,
    "gemma3": _OUTER | _ATTENTION | _QK_NORMS | _MLP | _FOUR_NORMS,
    "phi3": _OUTER | _FUSED | _TWO_NORMS,
}

# GGUF stores these frequency tables as tensors; a Hugging Face model has them in its config.
_ROPE_TABLES = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
# Where other wrappers keep the language model: what is written there -> the usual name.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    **{f"{part}.": f"model.{part}." for part in ("layers", "embed_tokens", "norm")},
}
_OTHER_MODALITIES = ("vision_tower.", "multi_modal_projector.")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def gguf_to_hf(name: str, family: str) -> str:
    """The Hugging Face name of a GGUF tensor, e.g. "blk.3.attn_q.weight".

    Raises UsageError for an unknown family and AprError for a name the family does not have,
    rotary frequency tables (see `is_rope_table`) included.
    """
    translated = _translate(name, _table(family))
    if translated is None:
        hint = "its values belong to the config" if is_rope_table(name) else ""
        raise AprError(f"GGUF tensor {name!r} is no {family} weight apr knows", hint)
    return translated


def hf_to_gguf(name: str, family: str) -> str:
    """The GGUF name of a Hugging Face tensor, e.g. "model.layers.3.self_attn.q_proj.weight".

    Raises UsageError for an unknown family and AprError for a name the family does not have.
    """
    translated = _translate(name, _inverse_table(family))
    if translated is None:
        raise AprError(f"tensor {name!r} is no {family} weight apr knows")
    return translated


def usual_names(names: Iterable[str], tied: bool) -> dict[str, str]:
    """Usual name -> name in the file, of a language model's tensors in Hugging Face's files.

    tied: the output layer is the embedding, so that one may be stored as the other.
    """
    found = {usual: name for name in names if (usual := text_name(name)) is not None}
    embedding, output = f"{_OUTER['token_embd']}.weight", f"{_OUTER['output']}.weight"
    if tied and embedding not in found and output in found:
        found[embedding] = found.pop(output)
    return found


def text_name(name: str) -> str | None:
    """The usual name of a Hugging Face tensor (or module) of a language model that is part of a
    multimodal one or was saved without its head; None for one of another modality.
    """
    if name.removeprefix("model.").startswith(_OTHER_MODALITIES):
        return None
    for prefix, ours in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name


def is_rope_table(name: str) -> bool:
    """Whether a GGUF tensor is a rotary frequency table: configuration rather than a weight."""
    return name in _ROPE_TABLES


def _table(family: str) -> dict[str, str]:
    if family not in FAMILY_TABLES:
        known = ", ".join(FAMILY_TABLES)
        raise UsageError(f"no tensor names for model family {family!r}", f"apr knows {known}")
    return FAMILY_TABLES[family]


@functools.cache
def _inverse_table(family: str) -> dict[str, str]:
    return {hf: gguf for gguf, hf in _table(family).items()}


def _translate(name: str, table: dict[str, str]) -> str | None:
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    layer = _LAYER.search(stem + ".")
    pattern = _LAYER.sub("{i}", stem + ".", count=1)[:-1]
    target = table.get(pattern)
    if target is None or ("{i}" in target and layer is None):
        return None
    return f"{target.replace('{i}', layer[0]) if layer else target}.{suffix}"
