"""Oracles: the parameter names of transformers' models and gguf's own map of tensor names."""

import gguf
import pytest
import torch

from apr.checkpoint.names import FAMILY_TABLES, gguf_to_hf, hf_to_gguf, is_rope_table
from apr.common.errors import AprError, UsageError

transformers = pytest.importorskip("transformers")

LAYERS = 12  # two digits
SMALL = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
MODELS = {
    "llama": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, "LLAMA"),
    "mistral": ("MistralConfig", {}, "LLAMA"),
    "qwen2": ("Qwen2Config", {}, "QWEN2"),
    "qwen3": ("Qwen3Config", {"head_dim": 4}, "QWEN3"),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 4}, "GEMMA3"),
    "phi3": ("Phi3Config", {}, "PHI3"),
}


def parameter_names(family):
    kind, options, _ = MODELS[family]
    config = getattr(transformers, kind)(**{**SMALL, **options})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return [name for name, _ in model.named_parameters()]


def test_every_family_has_an_oracle():
    assert set(MODELS) == set(FAMILY_TABLES)


@pytest.mark.parametrize("family", MODELS)
def test_equals_the_gguf_package_for_every_parameter_of_transformers(family):
    oracle = gguf.get_tensor_name_map(gguf.MODEL_ARCH[MODELS[family][2]], LAYERS)
    names = parameter_names(family)
    for name in names:
        translated = hf_to_gguf(name, family)
        assert translated == oracle.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_to_hf(translated, family) == name
    # and nothing in the table that the model does not have
    stems = {name.rpartition(".")[0].replace(".11.", ".{i}.") for name in names}
    assert set(FAMILY_TABLES[family].values()) <= stems


def test_gemma_gives_the_same_name_another_meaning():
    name = "model.layers.3.post_attention_layernorm.weight"
    assert hf_to_gguf(name, "llama") == "blk.3.ffn_norm.weight"
    assert hf_to_gguf(name, "gemma3") == "blk.3.post_attention_norm.weight"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("blk.0.ffn_gate_exps.weight", "llama"),
        ("blk.0.attn_q_norm.weight", "llama"),
        ("blk.0.attn_q.weight", "phi3"),
        ("blk.x.attn_q.weight", "llama"),
        ("blk.{i}.attn_q.weight", "llama"),
        ("blk..attn_q.weight", "llama"),
        ("blk.0.attn_q.scale", "llama"),
        ("blk.0.attn_q", "llama"),
        ("blk.0.1.attn_q.weight", "llama"),
        ("", "llama"),
        ("model.norm.weight", "llama"),
    ],
)
def test_unknown_gguf_names(name, family):
    with pytest.raises(AprError) as caught:
        gguf_to_hf(name, family)
    assert repr(name) in str(caught.value) and family in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.qkv_proj.weight", "blk.0.attn_q.weight"]
)
def test_unknown_hf_names(name):
    with pytest.raises(AprError, match="is no qwen2 weight"):
        hf_to_gguf(name, "qwen2")


def test_rope_tables():
    assert is_rope_table("rope_freqs.weight") and not is_rope_table("output.weight")
    with pytest.raises(AprError, match="belong to the config"):
        gguf_to_hf("rope_freqs.weight", "llama")


def test_unknown_family_lists_the_known():
    with pytest.raises(UsageError, match=r"'mamba'.*llama, mistral"):
        gguf_to_hf("output.weight", "mamba")
