"""Pruned models keep their zeros in training, and learn with what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from apr.errors import UsageError
from apr.train.finetune import FinetuneRequest, finetune, prepare
from apr.train.settings import TrainSettings
from apr.train.zeros import keep_zeros
from train.tiny import questions, write_model, write_rows


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_zeros_stay_and_the_rest_learns(dtype: str, tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl", questions(20))
    file = tmp_path / "tiny" / "model.safetensors"
    weights = load_file(file)
    matrices = [name for name in weights if name.endswith("_proj.weight")]
    for name in matrices:
        weights[name][:, ::2] = 0
    save_file(weights, file, metadata={"format": "pt"})
    request = FinetuneRequest(
        str(tmp_path / "tiny"),
        (tmp_path / "rows.jsonl",),
        method="full",
        train=TrainSettings(learning_rate=1e-2, max_steps=12, batch_size=2, weight_decay=0.1),
        dtype=dtype,
        max_length=160,
        keep_mask=True,
    )
    result = finetune(prepare(request, progress=False), tmp_path / "out")
    assert result["last_loss"] < result["first_loss"]
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name in matrices:
        assert bool((after[name][:, ::2] == 0).all())
        assert not torch.equal(after[name][:, 1::2].float(), weights[name][:, 1::2].float())


def test_the_gradient_of_other_weights_is_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(6, 4, bias=False)
    weight, x = torch.randn(4, 6, generator=generator), torch.randn(9, 6, generator=generator)
    weight[1, 2] = weight[3, 0] = 0
    linear.weight.data = weight.clone()
    assert keep_zeros(nn.ModuleDict({"up_proj": linear})) == 2
    linear(x).square().sum().backward()
    expected = (2 * (x @ weight.t()).t() @ x).masked_fill(weight == 0, 0)
    torch.testing.assert_close(linear.weight.grad, expected)


def test_a_model_without_zeros_and_an_adapter_are_refused() -> None:
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data.fill_(1.0)
    with pytest.raises(UsageError, match="no weight of the layers is zero"):
        keep_zeros(nn.ModuleDict({"up_proj": linear}))
    with pytest.raises(UsageError, match="--keep-mask is for --method full"):
        FinetuneRequest("m", (Path("d.jsonl"),), keep_mask=True)
