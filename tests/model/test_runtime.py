"""What a checkpoint runs on, and how that can be chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apr.common.errors import UsageError
from apr.engine.runners.runtime import load_runtime, pick_product_dtype
from apr.kernels.cpu import intrinsics
from apr.kernels.cpu.panels import HAS_SHUFFLE
from model.zoo import Case, make_hf

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        ({"avx2", "fma"}, torch.float32),
        ({"avx2", "avx512bw"}, torch.bfloat16),
        ({"neon"}, torch.float32),
        ({"neon", "bf16"}, torch.bfloat16),
    ],
)
def test_products_in_the_faster_type(
    features: set[str], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intrinsics, "target_features", lambda: frozenset(features))
    assert pick_product_dtype("auto", CPU) is kind
    assert pick_product_dtype("bf16", CPU) is torch.bfloat16
    assert pick_product_dtype("auto", torch.device("cuda")) is torch.bfloat16


@pytest.mark.skipif(not HAS_SHUFFLE, reason="this processor shuffles no bytes")
def test_zeros_are_left_out_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_hf(Case("pruned", "Llama", {"hidden_size": 128, "intermediate_size": 256}))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.masked_fill_(torch.rand(parameter.shape) < 0.5, 0)
    model.save_pretrained(tmp_path)
    sizes = {}
    for choice in ("never", "always"):
        monkeypatch.setenv("APR_SPARSE", choice)
        sizes[choice] = load_runtime(tmp_path).weight_bytes
    assert sizes["always"] < 0.8 * sizes["never"]
    monkeypatch.setenv("APR_SPARSE", "yes")
    with pytest.raises(UsageError, match="APR_SPARSE=yes is unknown"):
        load_runtime(tmp_path)
