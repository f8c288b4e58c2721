"""Oracles: GGUF files that tests/model/gguf_files.py writes by llama.cpp's conventions, and the
reader, which is tested against transformers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from apr.checkpoint.names import hf_to_gguf
from apr.common.errors import UsageError
from apr.model.config import ModelConfig, RopeScaling
from apr.model.families import config_from_gguf
from apr.model.gguf_export import (
    config_to_gguf,
    gguf_architecture,
    llama_cpp_limits,
    permute,
    rope_tensors,
    to_gguf_layout,
)
from apr.model.load import expected_shapes, unpermute
from apr.model.rope import inverse_frequencies
from model.gguf_files import write_gguf
from model.zoo import CASES, Case, make_hf, read_config

# truncate = false has no key in GGUF.
REFUSED = "qwen3-tied-yarn"
writable = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name != REFUSED], ids=lambda case: case.name
)


def read_back(cfg: ModelConfig) -> ModelConfig:
    """Through metadata, names and rotary tensors, as a file would give them."""
    factors = rope_tensors(cfg)
    names = [hf_to_gguf(name, gguf_architecture(cfg)) for name in expected_shapes(cfg)]
    metadata = {"general.architecture": gguf_architecture(cfg), **config_to_gguf(cfg)}
    return config_from_gguf(metadata, [*names, *factors], factors.__getitem__)


def without_tokens(cfg: ModelConfig) -> ModelConfig:
    return replace(cfg, bos_token_id=None, eos_token_ids=(), pad_token_id=None)


@writable
def test_the_configuration_comes_back(case: Case) -> None:
    cfg = without_tokens(read_config(make_hf(case)))
    found = read_back(cfg)
    if case.name == "llama-llama3":
        # Only Llama 3.1's own constants are recognised; the frequencies are the same.
        assert torch.allclose(inverse_frequencies(found)[0], inverse_frequencies(cfg)[0])
        assert read_back(found) == found
        cfg, found = replace(cfg, rope_scaling=None), replace(found, rope_scaling=None)
    if case.name == "mistral":  # GGUF has one architecture for both
        cfg = replace(cfg, family="llama")
    if cfg.attention_scale is not None:  # stored in 32 bits
        assert found.attention_scale == pytest.approx(cfg.attention_scale, rel=1e-7)
        found = replace(found, attention_scale=cfg.attention_scale)
    assert found == cfg


@writable
def test_tensors_and_metadata_are_those_of_a_converted_file(case: Case, tmp_path: Path) -> None:
    model = make_hf(case)
    cfg = read_config(model)
    reader = gguf.GGUFReader(write_gguf(tmp_path / "theirs.gguf", model))
    theirs = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    state = model.state_dict()
    ours = {
        hf_to_gguf(name, gguf_architecture(cfg)): to_gguf_layout(name, state[name], cfg)
        for name in expected_shapes(cfg)
    }
    factors = rope_tensors(cfg)
    assert theirs.keys() == ours.keys() | factors.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.reshape(-1), theirs[name].reshape(-1)), name
    for name, tensor in factors.items():
        # Computed by another formula: a few units in the last place.
        assert torch.allclose(tensor, theirs[name], rtol=1e-6, atol=0), name
    metadata = config_to_gguf(cfg)
    prefix = gguf_architecture(cfg) + "."
    wanted = {k: f.contents() for k, f in reader.fields.items() if k.startswith(prefix)}
    # A period here, a list of flags there: both are read. Without LongRoPE there is no other
    # original context than the context.
    wanted.pop(prefix + "attention.sliding_window_pattern", None)
    if not factors and cfg.family == "phi3":
        del wanted[prefix + "rope.scaling.original_context_length"]
    numbers = {k: pytest.approx(v, rel=1e-6) for k, v in wanted.items() if not isinstance(v, str)}
    assert {key: metadata.get(key) for key in wanted} == wanted | numbers


@pytest.mark.parametrize("shape", [(4 * 6, 5), (4 * 6,), (2 * 10, 3)])
def test_permute_is_undone(shape: tuple[int, ...]) -> None:
    heads = 4 if shape[0] == 24 else 2
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    moved = permute(tensor, heads)
    assert torch.equal(unpermute(moved, heads), tensor)
    half = shape[0] // heads // 2
    assert torch.equal(moved[1], tensor[half]) and torch.equal(moved[2], tensor[1])


def test_vectors_become_fp32_and_matrices_keep_their_type() -> None:
    cfg = read_config(make_hf(next(case for case in CASES if case.name == "gemma3")))
    norm = torch.tensor([-0.5, 0.25], dtype=torch.bfloat16)
    assert to_gguf_layout("model.norm.weight", norm, cfg).tolist() == [0.5, 1.25]
    matrix = torch.ones(4, 4, dtype=torch.bfloat16)
    assert to_gguf_layout("model.layers.0.mlp.up_proj.weight", matrix, cfg) is matrix


LLAMA31 = RopeScaling(
    "llama3", factor=8.0, original_max_position=8192, low_freq_factor=1.0, high_freq_factor=4.0
)
BASE = ModelConfig(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_layers=7,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    max_position=131072,
    rope_theta=500000.0,
)
GEMMA = replace(
    BASE, family="gemma3", sliding_window=512, sliding_layers=(*[True] * 5, False, True)
)


def test_llama_31s_own_scaling_is_recognised() -> None:
    cfg = replace(BASE, rope_scaling=LLAMA31)
    assert read_back(cfg) == cfg


@pytest.mark.parametrize("attention", [0.7, 1.4])
def test_yarn_with_its_own_attention_factor(attention: float) -> None:
    scaling = RopeScaling(
        "yarn", factor=4.0, original_max_position=4096, attention_factor=attention
    )
    found = read_back(replace(BASE, rope_scaling=scaling)).rope_scaling
    assert found is not None and found.attention_factor == pytest.approx(attention, rel=1e-6)
    assert replace(found, attention_factor=attention) == scaling


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (replace(BASE, family="qwen3", rope_scaling=LLAMA31), "factors of llama3"),
        (replace(BASE, attention_softcap=50.0), "attention_softcap"),
        (
            replace(BASE, rope_scaling=RopeScaling("yarn", 4.0, 4096, truncate=False)),
            "truncate = false",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused(cfg: ModelConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_to_gguf(cfg)
        rope_tensors(cfg)


@pytest.mark.parametrize(
    ("cfg", "note"),
    [
        (replace(BASE, family="mistral", sliding_window=7), "beyond 7 tokens"),
        (replace(BASE, family="qwen2", sliding_window=9), "sliding window of qwen2"),
        (replace(GEMMA, rope_local_theta=100.0), "older versions"),
        (replace(GEMMA, sliding_layers=(*[True] * 3, False) * 2), "older versions"),
        (replace(GEMMA, sliding_layers=(*[False] * 3, *[True] * 4)), "does not read which"),
        (replace(GEMMA, attention_scale=0.1), "not as asked"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_told(cfg: ModelConfig, note: str) -> None:
    (found,) = llama_cpp_limits(replace(cfg, num_layers=len(cfg.sliding_layers or range(7))))
    assert note in found


def test_published_models_have_nothing_to_tell() -> None:
    gemma_27b = replace(
        GEMMA,
        num_layers=62,
        sliding_layers=tuple((i + 1) % 6 != 0 for i in range(62)),
        attention_scale=168**-0.5,
        rope_local_theta=10000.0,
    )
    for cfg in (BASE, GEMMA, gemma_27b, replace(BASE, rope_scaling=LLAMA31)):
        assert llama_cpp_limits(cfg) == []
