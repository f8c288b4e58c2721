"""Small random models of every family, made with transformers: the oracle of these tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from apr.model.config import ModelConfig
from apr.model.families import config_from_hf
from apr.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

_SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_SHORT = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5]
_LONG = [1.0, 1.5, 2.5, 4.0, 6.0, 8.0]
_PHI_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 300.0,
    "short_factor": _SHORT,
    "long_factor": _LONG,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Case:
    """One configuration: the class that makes it and what differs from `_SMALL`."""

    name: str
    family: str  # stem of the transformers classes
    changes: dict[str, Any] = field(default_factory=dict)

    def hf_config(self) -> Any:
        kind = "Gemma3Text" if self.family == "Gemma3" else self.family
        return getattr(transformers, f"{kind}Config")(**{**_SMALL, **self.changes})


CASES = [
    Case("llama", "Llama"),
    Case("llama-tied-mha", "Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    Case("llama-mqa", "Llama", {"num_key_value_heads": 1}),
    Case("llama-wide-heads", "Llama", {"head_dim": 20}),
    Case(
        "llama-linear",
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0}},
    ),
    Case("llama-llama3", "Llama", {"head_dim": 16, "rope_parameters": _LLAMA3}),
    Case(
        "llama-yarn",
        "Llama",
        {"head_dim": 16, "rope_parameters": {**_YARN, "rope_theta": 400.0, "beta_fast": 4.0}},
    ),
    Case("mistral", "Mistral", {"sliding_window": None}),
    Case("mistral-window", "Mistral", {"sliding_window": 7, "head_dim": 16}),
    Case("qwen2", "Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    Case(
        "qwen2-window-tied",
        "Qwen2",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
    ),
    Case("qwen2-yarn", "Qwen2", {"rope_parameters": {**_YARN, "rope_theta": 900.0}}),
    Case("qwen3", "Qwen3", {"head_dim": 16}),
    Case(
        "qwen3-tied-yarn",
        "Qwen3",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **_YARN,
                "rope_theta": 900.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "beta_fast": 8.0,
                "truncate": False,
            },
        },
    ),
    Case(
        "gemma3",
        "Gemma3",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    Case(
        "gemma3-softcap-untied",
        "Gemma3",
        {
            "head_dim": 16,
            "num_key_value_heads": 1,
            "sliding_window": 5,
            "query_pre_attn_scalar": 16,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
    ),
    Case("phi3", "Phi3", {"num_key_value_heads": 4}),
    Case(
        "phi3-partial-window",
        "Phi3",
        {
            "hidden_size": 64,
            "sliding_window": 11,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 300.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    Case(
        "phi3-longrope",
        "Phi3",
        {"rope_parameters": _PHI_ROPE, "original_max_position_embeddings": 32},
    ),
    Case(
        "phi3-partial-longrope-tied",
        "Phi3",
        {
            "hidden_size": 64,
            "tie_word_embeddings": True,
            "rope_parameters": {**_PHI_ROPE, "partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 32,
        },
    ),
]
CASES_BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def make_hf(case: Case, seed: int = 0) -> Any:
    """The transformers model of a case, fp32, with weights large enough for attention to matter."""
    config = case.hf_config()
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{case.family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(parameter + 0.3 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(noise)
            elif "embed_tokens" in name:
                # Gemma multiplies embeddings by sqrt(hidden): keep the stream near 1 in all.
                parameter.copy_(noise / (config.hidden_size**0.5 if case.family == "Gemma3" else 1))
            else:
                parameter.copy_(1.5 * noise * parameter.shape[1] ** -0.5)
    return model


def read_config(model: Any) -> ModelConfig:
    """Through the text of config.json, as a folder on disk would give it."""
    return config_from_hf(json.loads(model.config.to_json_string()))


def make_ours(model: Any, config: ModelConfig | None = None) -> Transformer:
    """Our transformer with the weights of a transformers model."""
    config = config or read_config(model)
    ours = Transformer(config)
    weights = dict(model.state_dict())
    if config.tie_embeddings:
        del weights["lm_head.weight"]
    ours.load_state_dict(weights)
    return ours.eval()


def make_pair(name: str) -> tuple[Any, Transformer]:
    """A case by name: transformers' model and ours with the same weights."""
    model = make_hf(CASES_BY_NAME[name])
    return model, make_ours(model)


def hf_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """fp32 (B, T, V)."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def random_ids(batch: int, length: int, vocab: int = 131, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """max |got - want| / max |want|."""
    return float((got - want).abs().max() / want.abs().max())
