"""Oracles: `apr import` bit by bit, the gguf package's reader, llama.cpp against transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from apr.checkpoint import open_checkpoint
from apr.common.errors import AprError, UsageError
from apr.convert.check_model import check_model
from apr.convert.export_gguf import export_gguf
from apr.convert.import_checkpoint import import_checkpoint
from apr.model.families import config_from_checkpoint
from apr.model.load import load_transformer, load_weights
from apr.text import load_tokenizer
from model.zoo import CASES_BY_NAME, hf_logits, relative_error

from . import llama_cpp
from .models import TEMPLATE, VOCAB, folder, gguf_file, small_model

PADDING = 7
TEXTS = ["def f(return a):\n    12345", "<|im_start|>user\nhi é👩‍👩‍👧<|im_end|>", "", " \n\n\t x"]
FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3", "Phi3"]
# llama.cpp has no windows outside Gemma, and Gemma's attention scale only by its size.
COMPUTED = [
    "llama",
    "llama-tied-mha",
    "llama-mqa",
    "llama-wide-heads",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "gemma3-softcap-untied",
    "phi3",
    "phi3-longrope",
    "phi3-partial-longrope-tied",
]


def model_of(family: str, **changes: Any) -> Any:
    head_dim = {} if family in ("Qwen2", "Phi3") else {"head_dim": 16}
    return small_model(family, **{"vocab_size": VOCAB + PADDING, **head_dim, **changes})


def export(tmp_path: Path, model: Any, **options: Any) -> tuple[Path, Path]:
    """(folder, GGUF file)."""
    source = folder(tmp_path / "folder", model)
    return source, export_gguf(source, tmp_path / "m.gguf", progress=False, **options).path


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(path)
    return dict(load_weights(checkpoint, config_from_checkpoint(checkpoint)))


def assert_same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_import_gives_the_same_bits_and_tokens(family: str, dtype: str, tmp_path: Path) -> None:
    model = model_of(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if family == "Gemma3" and name.endswith("norm.weight"):
                # 1 + w in fp32 keeps all bits of a w in fp16 from 2^-13 on (bf16: 2^-16).
                parameter.copy_(torch.where(parameter.abs() < 2e-4, 0.5, parameter))
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    source, path = export(tmp_path, model.to(kind))
    import_checkpoint(path, tmp_path / "back", progress=False)
    found, wanted = tensors_of(tmp_path / "back"), tensors_of(source)
    if family == "Gemma3" and dtype == "fp32":
        for name in [name for name in wanted if name.endswith("norm.weight")]:
            assert (found.pop(name) - wanted.pop(name)).abs().max() <= 2**-23
    assert_same_bits(found, wanted)
    ours, theirs = load_tokenizer(tmp_path / "back"), load_tokenizer(source)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.special_tokens == theirs.special_tokens
    assert (ours.chat_template, ours.eos_ids) == (theirs.chat_template, theirs.eos_ids)
    assert check_model(str(path), forward=True, progress=False).problems == ()


def test_what_the_package_reads(tmp_path: Path) -> None:
    model = model_of("Llama", tie_word_embeddings=True).to(torch.bfloat16)
    _, path = export(tmp_path, model)
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["general.name"]) == ("model", "folder")
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"]) == VOCAB + PADDING
    assert fields["tokenizer.ggml.token_type"][-PADDING:] == [5] * PADDING
    manifest = json.loads(fields["apr.manifest"])
    assert manifest["command"] == "export"
    assert manifest["inputs"][0]["path"] == "model.safetensors"
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "output.weight" not in kinds  # tied
    assert kinds["token_embd.weight"] == kinds["blk.0.attn_q.weight"] == "BF16"
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"


@pytest.mark.parametrize("name", COMPUTED)
def test_llama_cpp_computes_transformers_logits(name: str, tmp_path: Path) -> None:
    """fp32 up to the order of sums; llama.cpp looks Gemma's GELU up in a table of fp16."""
    case = CASES_BY_NAME[name]
    model = small_model(case.family, **{**case.changes, "vocab_size": VOCAB + PADDING})
    _, path = export(tmp_path, model)
    ids = torch.randint(0, VOCAB, (1, 100), generator=torch.Generator().manual_seed(1))
    got = torch.tensor(llama_cpp.logits(path, ids.tolist()))
    tolerance = 3e-3 if case.family == "Gemma3" else 2e-5
    assert relative_error(got, hf_logits(model, ids)) <= tolerance


def test_llama_cpp_computes_gemmas_pattern_and_scaling(tmp_path: Path) -> None:
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(7)]
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    model = model_of(
        "Gemma3",
        num_hidden_layers=7,
        layer_types=kinds,
        sliding_window=8,
        query_pre_attn_scalar=16,
        rope_parameters=rope,
    )
    _, path = export(tmp_path, model)
    ids = torch.randint(0, VOCAB, (1, 60), generator=torch.Generator().manual_seed(1))
    got = torch.tensor(llama_cpp.logits(path, ids.tolist()))
    assert relative_error(got, hf_logits(model, ids)) <= 3e-3


def test_llama_cpp_reads_the_tokenizer(tmp_path: Path) -> None:
    source, path = export(tmp_path, model_of("Llama"))
    ours = load_tokenizer(source)
    for text, (parsed, literal) in zip(TEXTS, llama_cpp.token_ids(path, TEXTS), strict=True):
        assert parsed == ours.encode(text)
        assert literal == ours.encode(text, False, False)


def test_a_gguf_file_is_written_again(tmp_path: Path) -> None:
    """Its values, its tokenizer and its names as they are."""
    source = gguf_file(tmp_path / "source.gguf", model_of("Gemma3", vocab_size=VOCAB))
    report = export_gguf(source, tmp_path / "m.gguf", progress=False)
    assert (report.dtype, report.pre_tokenizer) == ("fp32", "gpt-2")
    before, after = (open_checkpoint(path) for path in (source, report.path))
    assert set(before.tensors.names()) == set(after.tensors.names())
    for name in before.tensors.names():
        assert torch.equal(before.tensors.get(name), after.tensors.get(name)), name
    assert before.metadata is not None and after.metadata is not None
    kept = {k: v for k, v in before.metadata.items() if k.startswith("tokenizer.")}
    assert {key: after.metadata[key] for key in kept} == kept
    assert config_from_checkpoint(after) == config_from_checkpoint(before)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source, path = export(tmp_path, model_of("Qwen2"))
    again = export_gguf(source, tmp_path / "again.gguf", progress=False).path
    assert path.read_bytes() == again.read_bytes()


def test_types(tmp_path: Path) -> None:
    source, _ = export(tmp_path, model_of("Llama"))
    for dtype, kind in [("bf16", torch.bfloat16), ("fp16", torch.float16)]:
        report = export_gguf(source, tmp_path / f"{dtype}.gguf", dtype, progress=False)
        stored = open_checkpoint(report.path).tensors
        matrix = load_transformer(source, torch.float32).get_parameter("lm_head.weight")
        assert torch.equal(stored.get("output.weight"), matrix.to(kind))
        assert stored.info("output_norm.weight").dtype == "F32"
        assert report.nbytes == report.path.stat().st_size
    with pytest.raises(UsageError, match=r"'q4_k_m' is a quantized type.*dense types only"):
        export_gguf(source, tmp_path / "q.gguf", "q4_k_m", progress=False)
    with pytest.raises(UsageError, match="'int7' is unknown"):
        export_gguf(source, tmp_path / "q.gguf", "int7", progress=False)


def test_failures_leave_nothing(tmp_path: Path) -> None:
    model = model_of("Llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    source = folder(tmp_path / "folder", model)
    left = set(tmp_path.iterdir())
    with pytest.raises(AprError, match="fp16 cannot hold"):
        export_gguf(source, tmp_path / "m.gguf", "fp16", progress=False)
    (source / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"tokenizer\.json: no such file"):
        export_gguf(source, tmp_path / "m.gguf", progress=False)
    with pytest.raises(UsageError, match="nothing"):
        export_gguf(tmp_path / "nothing", tmp_path / "m.gguf", progress=False)
    assert set(tmp_path.iterdir()) == left


def test_the_source_is_not_replaced(tmp_path: Path) -> None:
    source, path = export(tmp_path, model_of("Llama"))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        export_gguf(source, path, progress=False)
    with pytest.raises(UsageError, match="is the model that is to be read"):
        export_gguf(path, path, force=True, progress=False)
    assert path.read_bytes() == before
    export_gguf(source, path, "bf16", force=True, progress=False)
    assert path.stat().st_size < len(before)


def test_notes_reach_the_report_and_the_file(tmp_path: Path) -> None:
    source = folder(tmp_path / "folder", model_of("Mistral", sliding_window=7))
    report = export_gguf(source, tmp_path / "m.gguf", pre="smollm", progress=False)
    assert any("beyond 7 tokens" in note for note in report.notes)
    metadata = open_checkpoint(report.path).metadata
    assert metadata is not None
    manifest = json.loads(metadata["apr.manifest"])
    assert manifest["notes"] == list(report.notes)
    assert manifest["settings"] == {"format": "gguf", "dtype": None, "pre": "smollm"}
    cfg = config_from_checkpoint(open_checkpoint(source))
    assert replace(config_from_checkpoint(open_checkpoint(report.path)), eos_token_ids=(2,)) == cfg
