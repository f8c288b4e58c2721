"""Every family against transformers: configuration, logits, and the way back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from apr.common.errors import UsageError
from apr.model.families import KNOWN_FAMILIES, config_from_hf, config_to_hf

from .zoo import (
    CASES_BY_NAME,
    Case,
    every_case,
    hf_logits,
    make_hf,
    make_ours,
    random_ids,
    read_config,
    relative_error,
    transformers,
)

TOLERANCE = 1e-4


@every_case
@pytest.mark.parametrize("length", [1, 20, 61])
def test_logits_equal_transformers(case: Case, length: int) -> None:
    """Lengths below and above every window (5 to 11) and every original context (32)."""
    model = make_hf(case)
    ids = random_ids(2, length)
    want = hf_logits(model, ids)
    with torch.no_grad():
        got = make_ours(model, read_config(model))(ids)
    assert got.dtype == torch.float32
    assert relative_error(got, want) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_theta": 9000.0}),
        ("llama-llama3", {"rope_scaling": None}),
        ("llama-yarn", {"rope_scaling": None}),
        ("llama-linear", {"rope_scaling": None}),
        ("mistral-window", {"sliding_window": 8}),
        ("gemma3", {"rope_local_theta": 110.0}),
        ("gemma3", {"attention_scale": None}),
        ("gemma3", {"embedding_scale": 1.0}),
        ("gemma3-softcap-untied", {"logit_softcap": None}),
        ("phi3-partial-window", {"rope_theta": 310.0}),
        ("phi3-longrope", {"rope_scaling": None}),
    ],
)
def test_each_field_changes_the_logits(name: str, change: dict) -> None:
    """The comparison above would notice if a field were ignored."""
    model = make_hf(CASES_BY_NAME[name])
    ids = random_ids(2, 61)
    config = dataclasses.replace(read_config(model), **change)
    with torch.no_grad():
        got = make_ours(model, config)(ids)
    assert relative_error(got, hf_logits(model, ids)) > 10 * TOLERANCE


@every_case
def test_config_round_trip(case: Case) -> None:
    config = read_config(make_hf(case))
    written = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(written) == config
    assert config.family in KNOWN_FAMILIES


@every_case
def test_transformers_loads_what_we_write(case: Case) -> None:
    model = make_hf(case)
    written = config_to_hf(read_config(model))
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(written)))
    again = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    again.load_state_dict(model.state_dict())
    ids = random_ids(2, 61)
    assert type(again) is type(model)
    assert relative_error(hf_logits(again.eval(), ids), hf_logits(model, ids)) <= 1e-6


def test_gemma_inside_a_multimodal_config() -> None:
    text = make_hf(CASES_BY_NAME["gemma3"]).config.to_dict()
    alone = config_from_hf(text)
    outer = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    assert config_from_hf(outer) == dataclasses.replace(alone, eos_token_ids=(1, 106))


def test_real_config_files() -> None:
    """Files as published (abridged to what is read), in the transformers 4 form."""
    llama32 = config_from_hf(
        {
            "model_type": "llama",
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
        }
    )
    assert llama32.rope_scaling is not None and llama32.rope_scaling.factor == 32.0
    assert llama32.tie_embeddings and llama32.eos_token_ids == (128001, 128008, 128009)

    gemma4b = config_from_hf(
        {
            "model_type": "gemma3",
            "eos_token_id": [1, 106],
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        }
    )
    assert (gemma4b.num_heads, gemma4b.num_kv_heads, gemma4b.head_dim) == (8, 4, 256)
    assert gemma4b.tie_embeddings and gemma4b.vocab_size == 262208
    assert gemma4b.sliding_layers is not None and gemma4b.sliding_layers.count(False) == 5
    assert gemma4b.rope_theta == 1e6 and gemma4b.rope_local_theta == 1e4

    coder = config_from_hf(
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        }
    )
    assert coder.qkv_bias and coder.head_dim == 64 and coder.sliding_window is None


SMALL = json.loads(make_hf(CASES_BY_NAME["llama"]).config.to_json_string())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"model_type": None}, "no model_type"),
        ({"model_type": "qwen3_moe"}, "qwen3_moe"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu"}, "relu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 13}, "13"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (
            {
                "model_type": "phi3",
                "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]},
            },
            "short_factor",
        ),
    ],
)
def test_unsupported_configurations_are_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(UsageError) as refusal:
        config_from_hf({**SMALL, **change})
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as refusal:
        config_from_hf({"model_type": "mamba"})
    assert all(family in str(refusal.value) for family in KNOWN_FAMILIES)


ODD_VALUES = [None, "x", -1, 0, 1.5, True, [], [None], ["full_attention"], {}, {"rope_type": []}]


@pytest.mark.parametrize("name", ["llama-yarn", "qwen2-window-tied", "gemma3", "phi3-longrope"])
def test_malformed_values_are_refused_in_one_line(name: str) -> None:
    """Any field holding anything: a configuration or a UsageError, never another exception."""
    good = json.loads(make_hf(CASES_BY_NAME[name]).config.to_json_string())
    rope = good["rope_parameters"]
    older = ("rope_scaling", "sliding_window_pattern", "partial_rotary_factor", "num_experts")
    bad = [{**good, key: value} for key in (*good, *older) for value in ODD_VALUES]
    bad += [
        {**good, "rope_parameters": {**rope, key: value}} for key in rope for value in ODD_VALUES
    ]
    refused = 0
    for config in bad:
        try:
            config_from_hf(config)
        except UsageError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50
