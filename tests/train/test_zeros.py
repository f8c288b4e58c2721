"""Pruned models keep their zeros in training, and learn with what is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from apr.common.errors import UsageError
from apr.kernels.nf4 import quantize_nf4
from apr.model.weights import Linear
from apr.train.adapter_files import merge_adapter
from apr.train.finetune import finetune
from apr.train.lora import LoraLinear
from apr.train.prepare import prepare
from apr.train.supervised import SUPERVISED
from apr.train.train_settings import FinetuneRequest, LoraSettings, TrainSettings
from apr.train.zeros import check_zeros, keep_zeros
from train.tiny import questions, write_model, write_rows


def pruned_model(folder: Path) -> dict[str, torch.Tensor]:
    """A tiny model, every other input of its layers' matrices zero; these matrices."""
    write_model(folder)
    weights = load_file(folder / "model.safetensors")
    matrices = [name for name in weights if name.endswith("_proj.weight")]
    for name in matrices:
        weights[name][:, ::2] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return {name: weights[name] for name in matrices}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_zeros_stay_and_the_rest_learns(method: str, dtype: str, tmp_path: Path) -> None:
    before = pruned_model(tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl", questions(20))
    request = FinetuneRequest(
        str(tmp_path / "tiny"),
        (tmp_path / "rows.jsonl",),
        method=method,
        lora=LoraSettings(rank=4, targets=("all-linear", "embed_tokens")),
        train=TrainSettings(learning_rate=1e-2, max_steps=12, batch_size=2, weight_decay=0.1),
        dtype=dtype,
        max_length=160,
        keep_mask=True,
    )
    result = finetune(prepare(request, SUPERVISED, progress=False), tmp_path / "out")
    assert result["last_loss"] < result["first_loss"]
    after = tmp_path / "out"
    if method != "full":
        after = tmp_path / "merged"
        report = merge_adapter(str(tmp_path / "tiny"), tmp_path / "out", after)
        assert report["max_logit_difference"] < 1e-5 * report["max_logit"]
    saved = load_file(after / "model.safetensors")
    for name, weight in before.items():
        assert bool((saved[name][:, ::2] == 0).all())
        assert not torch.equal(saved[name][:, 1::2].float(), weight[:, 1::2].float())


@pytest.mark.parametrize(
    ("method", "keep", "what"),
    [
        ("full", False, "training fills them in"),
        ("lora", False, "merging the adapter fills them in"),
        ("qlora", False, "merging the adapter fills them in"),
        ("lora", True, None),
    ],
)
def test_what_becomes_of_zeros_is_said_before(
    method: str, keep: bool, what: str | None, tmp_path: Path
) -> None:
    pruned_model(tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl", questions(2))
    request = FinetuneRequest(
        str(tmp_path / "tiny"), (tmp_path / "rows.jsonl",), method=method, keep_mask=keep
    )
    notes = prepare(request, SUPERVISED, progress=False).summary()["notes"]
    found = [note for note in notes if "are zero" in note]
    if what is None:
        assert not found
    else:
        assert found == [f"about 50 % of the layers' weights are zero: {what}, unless --keep-mask"
                         " is given"]  # fmt: skip


def test_nothing_is_said_of_a_model_that_is_not_pruned(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl", questions(2))
    request = FinetuneRequest(str(tmp_path / "tiny"), (tmp_path / "rows.jsonl",), method="lora")
    notes = prepare(request, SUPERVISED, progress=False).summary()["notes"]
    assert not [note for note in notes if "are zero" in note]


@pytest.mark.parametrize("form", ["numbers", "packed", "packed with the zeros before"])
def test_the_gradients_of_a_masked_update(form: str) -> None:
    """Against autograd on the dense formula."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 64, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0
    weight[0, 0] = 1e-6  # zero in NF4
    kept = weight != 0
    base = Linear(64, 6)
    if form != "numbers":
        before = weight == 0 if "before" in form else None
        base = Linear(64, 6)
        base.freeze(quantize_nf4(weight), torch.float32, before)
        base.bias = nn.Parameter(torch.randn(6, generator=generator))
        weight = base.numbers(torch.float32).clone()
        assert not weight[0, 0] and not weight[~kept].any()
        kept = kept if before is not None else weight != 0
    else:
        base.weight.data = weight.clone()
    layer = LoraLinear(base.requires_grad_(False), 3, 1.5, keep_zeros=True)
    layer.reset(generator)
    layer.lora_b.data = torch.randn(6, 3, generator=generator)
    x = torch.randn(2, 5, 64, generator=generator, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()

    a, b = (t.detach().clone().requires_grad_() for t in (layer.lora_a, layer.lora_b))
    other = x.detach().clone().requires_grad_()
    dense = weight + 1.5 * (b @ a) * kept
    wanted = other @ dense.T + base.bias
    wanted.square().sum().backward()
    pairs = ((y, wanted), (x.grad, other.grad), (layer.lora_a.grad, a.grad))
    for ours, expected in (*pairs, (layer.lora_b.grad, b.grad)):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


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


def test_a_model_without_zeros_is_refused() -> None:
    linear = Linear(20, 20, bias=False)
    linear.weight.data.fill_(1.0)
    linear.weight.data[0, 0] = 0.0  # by chance
    with pytest.raises(UsageError, match="in no matrix of the layers are 1% of the weights"):
        keep_zeros(nn.ModuleDict({"up_proj": linear}))
    with pytest.raises(UsageError, match="in no matrix of the layers are 1% of the weights"):
        check_zeros(nn.ModuleDict({"up_proj": linear}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraSettings(dora=True)}, "`keep_mask` does not go with `dora`"),
        ({"method": "qlora", "lora": LoraSettings(dora=True)}, "`keep_mask` .* with `dora`"),
        ({"lora": LoraSettings(dropout=0.1)}, "`keep_mask` does not go with `dropout`"),
    ],
)
def test_what_keeping_zeros_does_not_go_with(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FinetuneRequest("m", (Path("d.jsonl"),), keep_mask=True, **changes)


def test_an_adapter_trained_without_it_is_refused(tmp_path: Path) -> None:
    pruned_model(tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl", questions(4))
    request = FinetuneRequest(
        str(tmp_path / "tiny"),
        (tmp_path / "rows.jsonl",),
        train=TrainSettings(max_steps=1, batch_size=2),
        max_length=160,
    )
    finetune(prepare(request, SUPERVISED, progress=False), tmp_path / "out")
    again = replace(request, adapter=tmp_path / "out", keep_mask=True)
    with pytest.raises(UsageError, match=r"`keep_mask`: .*out was trained without it"):
        finetune(prepare(again, SUPERVISED, progress=False), tmp_path / "more")
