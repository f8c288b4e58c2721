"""Adapters extracted from fine-tunes: the best of their rank, and readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apr.checkpoint.adapter import open_adapter
from apr.common.errors import AprError, UsageError
from apr.merge.extract import extract_lora, low_rank
from merge.tiny_models import tiny_weights, write_models

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weights = tiny_weights()
    generator = torch.Generator().manual_seed(8)
    exact = {name: tensor.clone() for name, tensor in weights["base"].items()}
    for tensor in exact.values():
        if tensor.dim() == 2 and tensor.shape[0] != 24:  # not by vocabulary
            u = torch.randn(tensor.shape[0], 2, generator=generator)
            tensor += 0.1 * u @ torch.randn(2, tensor.shape[1], generator=generator)
    folder = tmp_path / "models"
    write_models(folder, {"base": weights["base"], "a": weights["a"], "exact": exact})
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("shape", [(40, 30), (700, 600), (600, 900)])
def test_no_matrix_of_that_rank_is_nearer(shape: tuple[int, int]) -> None:
    """Eckart-Young: the error is the norm of the singular values left out."""
    generator = torch.Generator().manual_seed(9)
    decay = torch.linspace(0, 6, min(shape)).neg().exp()
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator))
    delta = u * decay @ v.T
    for rank in (1, 8, 25):
        b, a = low_rank(delta, rank)
        assert b.shape == (shape[0], rank) and a.shape == (rank, shape[1])
        best = decay[rank:].norm()
        # The randomized decomposition is within a percent, the exact one within rounding.
        assert (delta - b @ a).norm() <= best * 1.01


def test_a_delta_of_that_rank_is_recovered(models: Path, tmp_path: Path) -> None:
    report = extract_lora("exact", "base", tmp_path / "out", 2, progress=False)
    assert report.energy > 1 - 1e-9 and not report.left_out
    adapter = open_adapter(tmp_path / "out")
    base, exact = (load_file(f"{name}/model.safetensors") for name in ("base", "exact"))
    for name in adapter.targets:
        merged = adapter.apply(name, base[name], 0, len(base[name]))
        torch.testing.assert_close(merged, exact[name], rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert set(config["target_modules"]) == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }


def test_what_no_lora_holds_is_told(models: Path, tmp_path: Path) -> None:
    report = extract_lora("a", "base", tmp_path / "out", 3, progress=False)
    told = dict(report.left_out)
    assert set(told) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        *(f"model.layers.{i}.{n}_layernorm.weight" for i in range(3)
          for n in ("input", "post_attention")),
    }  # fmt: skip
    base, tuned = (load_file(f"{name}/model.safetensors") for name in ("base", "a"))
    change = (tuned["lm_head.weight"] - base["lm_head.weight"]).norm() / base[
        "lm_head.weight"
    ].norm()
    assert told["lm_head.weight"] == pytest.approx(float(change), rel=1e-5)
    layer = next(layer for layer in report.layers if layer.name == NAME)
    delta = tuned[NAME] - base[NAME]
    left = torch.linalg.svdvals(delta)[3:].norm() / delta.norm()
    assert layer.error == pytest.approx(float(left), rel=1e-4)


def test_embeddings_are_saved_whole_where_asked(models: Path, tmp_path: Path) -> None:
    extract_lora("a", "base", tmp_path / "out", 2, include_embeddings=True, progress=False)
    adapter = open_adapter(tmp_path / "out")
    tuned = load_file("a/model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(adapter.saved[name], tuned[name])
    assert adapter.config["modules_to_save"] == ["embed_tokens", "lm_head"]


def test_what_makes_no_adapter(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`rank` is 0"):
        extract_lora("a", "base", tmp_path / "out", 0)
    with pytest.raises(AprError, match="does not differ"):
        extract_lora("base", "base", tmp_path / "out", 2, progress=False)
    assert not (tmp_path / "out").exists()
    extract_lora("a", "base", tmp_path / "out", 2, progress=False)
    with pytest.raises(UsageError, match="not empty"):
        extract_lora("a", "base", tmp_path / "out", 2, progress=False)
