"""What inspection says, against what transformers and the gguf package count."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file

from apr.cli.inspect_model import describe
from apr.common.errors import UsageError
from apr.convert.inspect_model import inspect_model

from .models import TEMPLATE, folder, gguf_file, small_model, small_tokens


def test_folder(tmp_path: Path) -> None:
    model = small_model("Qwen3", head_dim=16).bfloat16()
    summary = inspect_model(str(folder(tmp_path / "m", model)), progress=False)
    assert summary.format == "safetensors"
    assert summary.architecture == "Qwen3ForCausalLM"
    assert summary.parameters == model.num_parameters()
    assert summary.bits_per_weight == 16
    assert summary.tensor_bytes == 2 * summary.parameters
    assert summary.file_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
    assert summary.config is not None
    assert (summary.config.num_layers, summary.config.head_dim) == (3, 16)
    assert [(t.dtype, t.tensors) for t in summary.types] == [("BF16", len(model.state_dict()))]
    assert summary.tokenizer == {
        "kind": "BPE",
        "vocab_size": len(small_tokens()),
        "bos": "<|im_start|>",
        "end": ["<|endoftext|>", "<|im_end|>"],
        "chat_template": True,
    }
    assert "<|im_end|>" in TEMPLATE


def test_gguf_counts_and_true_bits(tmp_path: Path) -> None:
    from .test_import import requantize

    model = small_model("Llama", hidden_size=64, intermediate_size=96)
    path = tmp_path / "q.gguf"
    requantize(gguf_file(tmp_path / "m.gguf", model), path)
    summary = inspect_model(str(path), progress=False)
    tensors = gguf.GGUFReader(path).tensors
    assert summary.architecture == "llama"
    assert summary.parameters == sum(int(t.n_elements) for t in tensors)
    assert summary.tensor_bytes == sum(int(t.n_bytes) for t in tensors)
    q8, f32 = summary.types
    assert (q8.dtype, f32.dtype) == ("Q8_0", "F32")
    assert 8 * q8.nbytes / q8.parameters == 8.5
    expected = (8.5 * q8.parameters + 32 * f32.parameters) / summary.parameters
    assert summary.bits_per_weight == pytest.approx(expected)
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in tensors}
    assert {info.name: info.shape for info in summary.tensors} == shapes


def test_lines_and_json(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", small_model("Llama"))
    summary = inspect_model(str(path), progress=False)
    text = "\n".join(describe(summary, with_tensors=True))
    for expected in (
        "LlamaForCausalLM (safetensors)",
        "3 of width 48, feed-forward 80",
        "4 heads of 12, 2 key/value heads",
        "128 tokens",
        "32.00 bits per weight",
        "model.layers.2.mlp.up_proj.weight  ",
        "80x48",
    ):
        assert expected in text
    assert "up_proj" not in "\n".join(describe(summary))
    value = json.loads(json.dumps(summary.to_json(with_tensors=True)))
    assert sum(prod(t["shape"]) for t in value["tensors"]) == value["parameters"]
    assert "tensors" not in summary.to_json()


def test_unknown_models_are_described_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Mamba9"], "model_type": "mamba9"}')
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    summary = inspect_model(str(tmp_path), progress=False)
    assert (summary.architecture, summary.parameters) == ("Mamba9", 6)
    assert summary.config is None
    assert summary.tokenizer is None
    assert any("mamba9" in note for note in summary.notes)
    assert any("tokenizer.json" in note for note in summary.notes)
    assert any(line.startswith("note") for line in describe(summary))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        inspect_model(str(tmp_path), progress=False)
