"""The dense form: masks, packing, gradients, dtypes."""

from __future__ import annotations

import pytest
import torch

from .zoo import make_pair, random_ids, relative_error


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "phi3-partial-window"])
def test_right_padding_does_not_reach_real_tokens(name: str) -> None:
    _, ours = make_pair(name)
    ids = random_ids(2, 20)
    mask = torch.ones_like(ids)
    mask[0, 13:] = 0
    with torch.no_grad():
        got, alone = ours(ids, mask), ours(ids[:1, :13])
        whole = ours(ids)
    assert relative_error(got[0, :13], alone[0]) <= 1e-5
    assert relative_error(got[1], whole[1]) <= 1e-5
    assert got.isfinite().all()


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3-partial-window"])
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    _, ours = make_pair(name)
    first, second = random_ids(1, 17, seed=3), random_ids(1, 14, seed=4)
    document = torch.tensor([0] * 17 + [1] * 14)
    mask = (document[:, None] == document[None, :])[None]
    positions = torch.cat([torch.arange(17), torch.arange(14)])[None]
    with torch.no_grad():
        packed = ours(torch.cat([first, second], dim=1), mask, positions)
        assert relative_error(packed[:, :17], ours(first)) <= 1e-5
        assert relative_error(packed[:, 17:], ours(second)) <= 1e-5


@pytest.mark.parametrize("name", ["llama-tied-mha", "qwen2", "gemma3", "phi3-partial-window"])
def test_gradients_equal_transformers(name: str) -> None:
    model, ours = make_pair(name)
    ids = random_ids(2, 15)
    targets = random_ids(2, 15, seed=9).flatten()
    for network, logits in ((model, model(input_ids=ids).logits), (ours, ours(ids))):
        network.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    theirs = dict(model.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert relative_error(parameter.grad, theirs[name].grad) <= 1e-4, name


def test_training_after_an_inference_run() -> None:
    """Cached rotary frequencies must not be inference tensors."""
    _, ours = make_pair("llama-yarn")
    ids = random_ids(1, 8)
    with torch.inference_mode():
        ours(ids)
    ours(ids).sum().backward()
    assert ours.model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_give_wide_logits(dtype: torch.dtype) -> None:
    _, ours = make_pair("llama")
    ids = random_ids(1, 20)
    with torch.no_grad():
        want = ours(ids)
        got = ours.to(dtype)(ids)
    assert got.dtype == torch.float32
    assert relative_error(got, want) <= 0.05
    # Logits are not rounded to the weights' type.
    assert not torch.equal(got, got.to(dtype).float())


def test_parameter_names_are_hugging_face_names() -> None:
    for name in ("llama", "gemma3", "phi3-partial-window", "qwen3-tied-yarn"):
        model, ours = make_pair(name)
        assert {n for n, _ in ours.named_parameters()} == {n for n, _ in model.named_parameters()}
