"""Weights from Hugging Face folders and from GGUF files, against the models they came from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from apr.checkpoint import open_checkpoint
from apr.common.errors import AprError, UsageError
from apr.merge.merge import prepare, run_merge
from apr.merge.recipe import make_settings
from apr.model.families import config_from_checkpoint, config_from_gguf, config_to_hf
from apr.model.gguf_export import config_to_gguf
from apr.model.load import expected_shapes, load_transformer, load_weights
from apr.model.opened import open_model
from convert.models import gguf_file, small_model

from .gguf_files import write_gguf
from .zoo import (
    CASES,
    CASES_BY_NAME,
    Case,
    every_case,
    hf_logits,
    make_hf,
    random_ids,
    read_config,
    relative_error,
)

TOLERANCE = 1e-4
# GGUF has no field for YaRN without rounding or for the ratio of two mscales.
GGUF_CASES = [case for case in CASES if case.name != "qwen3-tied-yarn"]
every_gguf_case = pytest.mark.parametrize("case", GGUF_CASES, ids=lambda case: case.name)


def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_transformer(path, dtype=torch.float32)(ids)


def folder(path: Path, model: Any) -> Path:
    model.save_pretrained(path)
    return path


def rewrite(path: Path, change: Any) -> Path:
    """Apply `change` to the tensors of a folder with one file."""
    file = path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})
    return path


@every_case
def test_folder(case: Case, tmp_path: Path) -> None:
    model = make_hf(case)
    ids = random_ids(2, 61)
    got = logits(folder(tmp_path, model), ids)
    assert relative_error(got, hf_logits(model, ids)) <= TOLERANCE


@every_gguf_case
def test_gguf(case: Case, tmp_path: Path) -> None:
    model = make_hf(case)
    path = write_gguf(tmp_path / "model.gguf", model)
    ids = random_ids(2, 61)
    assert relative_error(logits(path, ids), hf_logits(model, ids)) <= TOLERANCE


@every_gguf_case
def test_gguf_gives_the_same_configuration(case: Case, tmp_path: Path) -> None:
    model = make_hf(case)
    want = read_config(model)
    got = config_from_checkpoint(open_checkpoint(write_gguf(tmp_path / "m.gguf", model)))
    if want.rope_scaling is not None and want.rope_scaling.kind == "llama3":
        want = dataclasses.replace(want, rope_scaling=got.rope_scaling)  # tested below
    if case.name == "mistral":  # without a window GGUF does not tell it from llama
        want = dataclasses.replace(want, family="llama")
    if want.attention_scale is not None:  # 32-bit in GGUF
        assert got.attention_scale == pytest.approx(want.attention_scale, rel=1e-6)
        want = dataclasses.replace(want, attention_scale=got.attention_scale)
    assert got == want


@pytest.mark.parametrize("original", [8192, 4096])
def test_gguf_llama3_scaling(original: int, tmp_path: Path) -> None:
    """Published constants are recognised; others compute the same as they are."""
    case = CASES_BY_NAME["llama-llama3"]
    rope = {**case.changes["rope_parameters"], "rope_theta": 500000.0, "factor": 32.0}
    rope["original_max_position_embeddings"] = original
    changes = {**case.changes, "rope_parameters": rope, "max_position_embeddings": 131072}
    model = make_hf(dataclasses.replace(case, changes=changes))
    path = write_gguf(tmp_path / "model.gguf", model)
    got = config_from_checkpoint(open_checkpoint(path))
    if original == 8192:
        assert got == read_config(model)
    ids = random_ids(1, 61)
    assert relative_error(logits(path, ids), hf_logits(model, ids)) <= TOLERANCE


def test_rope_tensors_need_a_reader(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", make_hf(CASES_BY_NAME["phi3-longrope"]))
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata is not None
    with pytest.raises(ValueError, match="read_tensor"):
        config_from_gguf(checkpoint.metadata, checkpoint.tensors.names())


def test_dtype_and_order(tmp_path: Path) -> None:
    """bf16 folders load as they are; asking for a dtype converts; names come in model order."""
    model = make_hf(CASES_BY_NAME["gemma3"]).to(torch.bfloat16)
    checkpoint = open_checkpoint(folder(tmp_path, model))
    config = config_from_checkpoint(checkpoint)
    stored = list(load_weights(checkpoint, config))
    assert [name for name, _ in stored] == list(expected_shapes(config))
    assert {tensor.dtype for _, tensor in stored} == {torch.bfloat16}
    wide = load_weights(checkpoint, config, torch.float32)
    assert {tensor.dtype for _, tensor in wide} == {torch.float32}
    loaded = load_transformer(checkpoint)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.state_dict()[name]) and not parameter.requires_grad


def test_multimodal_gemma_folder(tmp_path: Path) -> None:
    """Only the language model is read, under both layouts transformers has used."""
    model = make_hf(CASES_BY_NAME["gemma3"])
    ids = random_ids(1, 30)
    config = {"model_type": "gemma3", "text_config": model.config.to_dict()}
    for prefix, vision in (
        ("language_model.model.", "vision_tower.x.weight"),
        ("model.language_model.", "model.vision_tower.x.weight"),
    ):
        path = folder(tmp_path / prefix, model)
        (path / "config.json").write_text(json.dumps(config))

        def rename(tensors: dict, prefix: str = prefix, vision: str = vision) -> dict:
            named = {prefix + name.removeprefix("model."): t for name, t in tensors.items()}
            return {**named, vision: torch.zeros(3)}

        got = logits(rewrite(path, rename), ids)
        assert relative_error(got, hf_logits(model, ids)) <= TOLERANCE


def test_folder_errors_name_the_tensor(tmp_path: Path) -> None:
    model = make_hf(CASES_BY_NAME["llama"])
    o_proj = "model.layers.1.self_attn.o_proj.weight"

    def broken(name: str, change: Any) -> str:
        with pytest.raises(AprError) as error:
            load_transformer(rewrite(folder(tmp_path / name, model), change))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert f"{o_proj} is missing" in broken(
        "missing", lambda t: {k: v for k, v in t.items() if k != o_proj}
    )
    extra = {"model.layers.1.self_attn.o_proj.bias": torch.zeros(48)}
    assert "o_proj.bias is unexpected" in broken("extra", lambda t: {**t, **extra})
    text = broken("shape", lambda t: {**t, o_proj: torch.zeros(48, 47)})
    assert o_proj in text and "(48, 47)" in text and "(48, 48)" in text


def test_tied_embeddings_with_a_stored_copy(tmp_path: Path) -> None:
    model = make_hf(CASES_BY_NAME["llama-tied-mha"])
    ids = random_ids(1, 12)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    path = rewrite(folder(tmp_path / "same", model), lambda t: {**t, head: t[embedding].clone()})
    assert relative_error(logits(path, ids), hf_logits(model, ids)) <= TOLERANCE
    path = rewrite(folder(tmp_path / "other", model), lambda t: {**t, head: t[embedding] + 1})
    with pytest.raises(AprError, match=r"lm_head\.weight differs"):
        load_transformer(path)


@pytest.mark.parametrize("spelling", ["no prefix", "the output layer alone", "both"])
def test_other_spellings_of_the_same_tensors(spelling: str, tmp_path: Path) -> None:
    """Read like the usual one, also as a base that is merged."""
    model = make_hf(CASES_BY_NAME["llama-tied-mha"])

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if spelling != "no prefix":
            tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        if spelling != "the output layer alone":
            tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
        return tensors

    usual = folder(tmp_path / "usual", model)
    path = rewrite(folder(tmp_path / "other", model), change)
    ids = random_ids(1, 12)
    assert relative_error(logits(path, ids), hf_logits(model, ids)) <= TOLERANCE
    plan = {"merge_method": "linear", "models": [str(path), str(usual)], "dtype": "float32"}
    plan["models"] = [{"model": str(m), "parameters": {"weight": 0.5}} for m in (path, usual)]
    run_merge(prepare(make_settings(plan, "here")), tmp_path / "merged", progress=False)
    assert relative_error(logits(tmp_path / "merged", ids), hf_logits(model, ids)) <= TOLERANCE


def test_a_split_model_named_by_any_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Split(gguf.GGUFWriter):
        def __init__(self, path: Path, arch: str) -> None:
            super().__init__(path, arch, split_max_tensors=9)

    model = small_model("Llama")
    monkeypatch.setattr(gguf, "GGUFWriter", Split)
    gguf_file(tmp_path / "m.gguf", model)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    first, *others = (open_model(str(part)) for part in parts)
    ids = first.tokenizer.encode("def f(a): return a")
    want = hf_logits(model, torch.tensor([ids]))
    for other in others:
        assert other.tokenizer.encode("def f(a): return a") == ids
        found = logits(other.checkpoint.path, torch.tensor([ids]))
        assert relative_error(found, want) <= TOLERANCE


@pytest.mark.parametrize("original", [None, 32])
def test_the_context_of_a_published_yarn_recipe(original: int | None, tmp_path: Path) -> None:
    """The factor over the original context counts, whatever the configuration declares beside."""
    recipe = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": original}
    config = {"max_position_embeddings": 32, "rope_parameters": {**recipe, "rope_theta": 900.0}}
    if original is None:
        del recipe["original_max_position_embeddings"], config["rope_parameters"]
        config["rope_scaling"] = recipe
    path = folder(tmp_path / "m", make_hf(Case("recipe", "Qwen2", {"max_position_embeddings": 32})))
    stated = json.loads((path / "config.json").read_text())
    stated.pop("rope_parameters", None)
    (path / "config.json").write_text(json.dumps({**stated, **config}))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = random_ids(1, 120)
    assert relative_error(logits(path, ids), hf_logits(model, ids)) <= TOLERANCE
    cfg = config_from_checkpoint(open_checkpoint(path))
    assert cfg.max_position == 128
    assert config_to_hf(cfg)["max_position_embeddings"] == 128
    keys = {**config_to_gguf(cfg), "general.architecture": "qwen2", "qwen2.context_length": 32}
    assert config_from_gguf(keys, ["output.weight", "blk.0.attn_q.bias"]).max_position == 128


def test_old_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    model = make_hf(CASES_BY_NAME["llama"])
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)}
    path = rewrite(folder(tmp_path, model), lambda t: {**t, **buffer})
    ids = random_ids(1, 12)
    assert relative_error(logits(path, ids), hf_logits(model, ids)) <= TOLERANCE


def test_folder_without_config(tmp_path: Path) -> None:
    path = folder(tmp_path, make_hf(CASES_BY_NAME["llama"]))
    (path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_transformer(path)


def test_config_errors_name_the_file(tmp_path: Path) -> None:
    path = folder(tmp_path, make_hf(CASES_BY_NAME["llama"]))
    (path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UsageError) as error:
        load_transformer(path)
    assert str(path) in str(error.value) and "mamba" in str(error.value)


def test_gguf_errors_name_the_tensor(tmp_path: Path) -> None:
    model = make_hf(CASES_BY_NAME["llama"])
    lacking = write_gguf(tmp_path / "a.gguf", model, skip=frozenset({"blk.2.ffn_up.weight"}))
    with pytest.raises(AprError, match=r"blk\.2\.ffn_up\.weight is missing"):
        load_transformer(lacking)
    odd = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    with pytest.raises(AprError, match=r"blk\.0\.attn_sinks\.weight"):
        load_transformer(write_gguf(tmp_path / "b.gguf", model, extra=odd))
    more = {"blk.7.ffn_up.weight": np.zeros((80, 48), np.float32)}
    with pytest.raises(AprError, match=r"blk\.7\.ffn_up\.weight is unexpected"):
        load_transformer(write_gguf(tmp_path / "c.gguf", model, extra=more))


BASE = {
    "general.architecture": "llama",
    "llama.context_length": 128,
    "llama.embedding_length": 48,
    "llama.block_count": 2,
    "llama.feed_forward_length": 80,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "llama.vocab_size": 131,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"general.architecture": None}, "general.architecture"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.block_count": None}, "llama.block_count"),
        ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv"),
        ({"llama.attention.head_count_kv": 3}, "head_count_kv"),
        ({"llama.attention.value_length": 8}, "value_length"),
        ({"llama.rope.dimension_count": 6}, "rope.dimension_count"),
        ({"llama.rope.scaling.type": "dynamic"}, "dynamic"),
        ({"llama.rope.scaling.type": "linear"}, "rope.scaling.factor"),
        ({"llama.rope.scaling.type": "longrope"}, "rope_factors_long.weight"),
        ({"llama.attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"llama.vocab_size": None}, "vocab_size"),
    ],
)
def test_unsupported_gguf_is_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(UsageError) as error:
        config_from_gguf({**BASE, **change}, ["token_embd.weight"])
    assert named in str(error.value) and "\n" not in str(error.value)


def test_gguf_metadata_details() -> None:
    metadata = {
        **BASE,
        "llama.rope.scale_linear": 4.0,
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.eot_token_id": 7,
    }
    config = config_from_gguf(metadata, ["token_embd.weight", "blk.0.attn_q.bias"])
    assert config.norm_eps == 1e-5  # not 9.999999747378752e-06
    assert config.rope_scaling is not None and config.rope_scaling.factor == 4.0
    assert config.eos_token_ids == (2, 7) and config.tie_embeddings and config.qkv_bias
    gemma = {k.replace("llama.", "gemma3."): v for k, v in BASE.items()}
    gemma |= {
        "general.architecture": "gemma3",
        "gemma3.embedding_length": 5376,
        "gemma3.attention.head_count": 32,
        "gemma3.attention.key_length": 128,
        "gemma3.attention.value_length": 128,
        "gemma3.block_count": 62,
        "gemma3.attention.sliding_window": 1024,
    }
    big = config_from_gguf(gemma, ["token_embd.weight"])
    assert big.attention_scale == 168**-0.5  # the 27B model's query_pre_attn_scalar
    assert big.sliding_layers is not None and big.sliding_layers[:7] == (True,) * 5 + (False, True)
    assert big.embedding_scale == math.sqrt(5376) and big.rope_theta == 1e6


def test_malformed_gguf_values_are_refused_in_one_line() -> None:
    optional = (
        "llama.rope.scaling.type",
        "llama.rope.freq_base",
        "llama.attention.sliding_window",
        "llama.attention.scale",
        "llama.final_logit_softcapping",
        "tokenizer.ggml.eos_token_id",
    )
    refused = 0
    for key in (*BASE, *optional):
        for value in ("x", -1, 1.5, [], [None], {"a": 1}):
            try:
                config_from_gguf({**BASE, key: value}, ["token_embd.weight"])
            except UsageError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 50


def test_gguf_yarn_attention_factor() -> None:
    yarn = {
        **BASE,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    paper = 0.1 * math.log(4.0) + 1.0

    def factor(change: dict) -> float | None:
        scaling = config_from_gguf({**yarn, **change}, ["token_embd.weight"]).rope_scaling
        assert scaling is not None
        return scaling.attention_factor

    assert factor({}) is None  # the paper's
    assert factor({"llama.rope.scaling.yarn_attn_factor": 1.25}) == 1.25
    assert factor({"llama.rope.scaling.attn_factor": 0.5}) == pytest.approx(paper / 2)
