"""Bases that stay packed: the same numbers and gradients as with the weights they stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from apr.checkpoint import open_checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.common.errors import UsageError
from apr.kernels import ops
from apr.model.families import config_from_checkpoint
from apr.model.load import load_transformer
from apr.model.transformer import Transformer
from apr.model.weights import Linear
from apr.train.base import base_size, check_base, load_base
from apr.train.finetune import finetune
from apr.train.lora import adapters_of, adapters_off, add_lora
from apr.train.objective import target_logprobs, token_loss
from apr.train.packing import Document, make_batch
from apr.train.prepare import prepare
from apr.train.supervised import SUPERVISED
from apr.train.train_settings import FinetuneRequest, LoraSettings, TrainSettings
from model.gguf_files import write_gguf

from .tiny import questions, write_model, write_rows

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2}


def packed_layers(model: Transformer) -> list[Linear]:
    linear = (module for module in model.modules() if isinstance(module, Linear))
    return [module for module in linear if module.frozen is not None]


def unpacked(model: Transformer) -> Transformer:
    """The same model with plain layers that hold the numbers."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, Linear) or module.frozen is None:
            continue
        plain = Linear(module.in_features, module.out_features, bias=module.bias is not None)
        plain.weight.data = module.numbers(torch.float32).clone()
        if module.bias is not None:
            plain.bias.data = module.bias.data
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    return model


def gguf_model(folder: Path, blocks: str) -> Path:
    write_model(folder / "plain", **SIZES)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)
    model.config.pad_token_id = model.config.bos_token_id = 0
    return write_gguf(folder / f"{blocks}.gguf", model, blocks=blocks)


def loss_and_gradients(model: Transformer, settings: LoraSettings) -> list[torch.Tensor]:
    adapters = add_lora(model, settings, seed=1)
    generator = torch.Generator().manual_seed(2)
    for adapter in adapters:
        adapter.lora_b.data = 0.1 * torch.randn(adapter.lora_b.shape, generator=generator)
    ids = torch.randint(0, 256, (40,), generator=generator).int().numpy()
    batch = make_batch([Document(ids, ids >= 0)])
    loss = token_loss(model, batch)
    loss.backward()
    learned = (p for a in adapters for p in a.parameters() if p.requires_grad)
    return [loss.detach(), *(p.grad for p in learned if p.grad is not None)]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("blocks", ["NF4", "Q8_0", "Q4_1", "Q5_0"])
def test_packed_is_as_the_numbers_it_stands_for(blocks: str, dora: bool, tmp_path: Path) -> None:
    if blocks == "NF4":
        path, method = write_model(tmp_path / "m", **SIZES), "qlora"
    else:
        path, method = gguf_model(tmp_path, blocks), "lora"
    settings = LoraSettings(rank=4, targets=("all-linear",), dora=dora)
    model = load_base(open_checkpoint(path), method, torch.float32, CPU)
    assert len(packed_layers(model)) == 2 * 7
    ours = loss_and_gradients(model, settings)
    plain = unpacked(load_base(open_checkpoint(path), method, torch.float32, CPU))
    assert not packed_layers(plain)
    theirs = loss_and_gradients(plain, settings)
    assert len(ours) == len(theirs) == 1 + (3 if dora else 2) * 14
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_16_bits_stay_under_fp32(stored: torch.dtype, tmp_path: Path) -> None:
    """The same numbers in half the memory: losses and gradients are the same bit by bit."""
    path = write_model(tmp_path / "m", **SIZES)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=stored)
    model.save_pretrained(path)
    settings = LoraSettings(rank=4, targets=("all-linear",))
    base = load_base(open_checkpoint(path), "lora", torch.float32, CPU)
    assert [layer.frozen.nbytes for layer in packed_layers(base)] == [
        2 * layer.in_features * layer.out_features for layer in packed_layers(base)
    ]
    assert len(packed_layers(base)) == 2 * 7
    plain = load_transformer(path, torch.float32)
    ours, theirs = (loss_and_gradients(model, settings) for model in (base, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for dtype, method in ((torch.bfloat16, "lora"), (torch.float32, "full")):
        assert not packed_layers(load_base(open_checkpoint(path), method, dtype, CPU))


@pytest.mark.parametrize("blocks", ["Q8_0", "Q4_0"])
def test_blocks_of_a_file_are_read_as_they_are_elsewhere(blocks: str, tmp_path: Path) -> None:
    """Rows of q and k are interleaved in these files; reading undoes it for blocks as well."""
    path = gguf_model(tmp_path, blocks)
    packed = load_base(open_checkpoint(path), "lora", torch.float32, CPU)
    plain = load_transformer(path, torch.float32)
    for name, module in packed.named_modules():
        if isinstance(module, Linear) and module.frozen is not None:
            expected = plain.get_submodule(name).weight
            assert torch.equal(module.numbers(torch.float32), expected)
    ids = torch.arange(20)[None]
    assert torch.equal(packed(ids), plain(ids))


def test_biases_stay(tmp_path: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "m")
    packed = load_base(open_checkpoint(tmp_path / "m"), "qlora", torch.float32, CPU)
    ids = torch.arange(20)[None]
    assert torch.equal(packed(ids), unpacked(packed)(ids))
    assert float(packed.model.layers[0].self_attn.q_proj.bias.detach().abs().sum()) > 1


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_sizes_are_those_of_what_is_loaded(method: str, dtype: str, tmp_path: Path) -> None:
    kind = DTYPES[dtype]
    for path in (write_model(tmp_path / "m", **SIZES), gguf_model(tmp_path, "Q4_1")):
        checkpoint = open_checkpoint(path)
        if checkpoint.format == "gguf" and method == "qlora":
            continue
        model = load_base(checkpoint, method, kind, CPU)
        plain = sum(p.nbytes for p in model.parameters())
        size = base_size(checkpoint, model.config, method, dtype)
        assert size.weights == plain + sum(layer.frozen.nbytes for layer in packed_layers(model))
        assert size.scratch == (64 * 128 * kind.itemsize if packed_layers(model) else 0)


def request(folder: Path, **changes: object) -> FinetuneRequest:
    write_model(folder / "tiny")
    write_rows(folder / "rows.jsonl", questions(40))
    base = FinetuneRequest(
        str(folder / "tiny"), (str(folder / "rows.jsonl"),), "qlora",
        train=TrainSettings(learning_rate=2e-2, batch_size=2), eval_split=0.2, max_length=160,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def test_qlora_learns_and_its_adapter_fits_the_model(tmp_path: Path) -> None:
    prepared = prepare(request(tmp_path), SUPERVISED)
    result = finetune(prepared, tmp_path / "out")
    assert result["last_eval"] < result["first_eval"] - 0.1
    again = request(tmp_path, method="lora", adapter=tmp_path / "out")
    on_numbers = finetune(prepare(again, SUPERVISED), tmp_path / "more")
    # The same adapter on the weights that were rounded.
    assert on_numbers["first_eval"] == pytest.approx(result["best_eval"], abs=0.1)
    assert finetune(prepare(replace(again, method="qlora"), SUPERVISED), tmp_path / "on")[
        "first_eval"
    ] == (pytest.approx(result["best_eval"], abs=1e-3))


def test_auto_takes_the_first_that_fits(tmp_path: Path) -> None:
    def chosen(memory: int) -> tuple[str, bool]:
        found = prepare(request(tmp_path, method="auto", memory=memory), SUPERVISED).request
        return found.method, found.recompute

    peaks = {
        (method, recompute): prepare(
            request(tmp_path, method=method, recompute=recompute), SUPERVISED
        ).memory.peak
        for method in ("lora", "qlora")
        for recompute in (False, True)
    }
    margin = 1 << 22  # this process grows a little between two plans
    assert chosen(peaks["lora", False] + margin) == ("lora", False)
    assert chosen(1 << 40) == ("lora", False)
    with pytest.raises(UsageError, match=r"^`memory` .* too little: .* GB are needed"):
        prepare(request(tmp_path, method="auto", memory=1000), SUPERVISED)
    with pytest.raises(UsageError, match="`method` auto and `memory` go together"):
        request(tmp_path, method="auto")


def test_a_quantized_base_is_not_quantized_again(tmp_path: Path) -> None:
    path = gguf_model(tmp_path, "Q8_0")
    checkpoint = open_checkpoint(path)
    with pytest.raises(UsageError, match=r"^`method` qlora: .* is quantized already \("):
        check_base(checkpoint, config_from_checkpoint(checkpoint), "qlora")


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_bf16_without_bf16_products(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products widened to fp32 leave no larger errors than torch's own in bf16, both measured on
    the same numbers in fp32. (A quarter more is chance: other results are rounded up.)
    """
    path = write_model(tmp_path / "m", **SIZES)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model.save_pretrained(path)

    def step(wide: bool = False) -> torch.Tensor:
        """The loss's gradient, all of it."""
        model = load_base(open_checkpoint(path), method, torch.bfloat16, CPU)
        if wide:
            model = unpacked(model).float()
        if method != "full":
            gradients = loss_and_gradients(model, LoraSettings(4, targets=("all-linear",)))[1:]
        else:
            ids = torch.arange(0, 240, 6).int().numpy()
            loss = token_loss(model.requires_grad_(), make_batch([Document(ids, ids >= 0)]))
            gradients = list(torch.autograd.grad(loss, list(model.parameters())))
        return torch.cat([g.float().flatten() for g in gradients])

    exact = step(wide=True)
    errors = {}
    for has_bf16 in (True, False):
        monkeypatch.setattr(ops, "multiplies_bf16", lambda device, has=has_bf16: has)
        errors[has_bf16] = (step() - exact).norm() / exact.norm()
    assert 0 < errors[False] <= 1.25 * errors[True] < 0.2


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_with_its_adapters_off_a_model_is_its_own_reference(
    tmp_path: Path, method: str, dora: bool
) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "m"))
    ids = np.arange(4, 60, dtype=np.int32)
    batch = make_batch([Document(ids, np.ones(len(ids), bool))])
    plain = load_base(checkpoint, method, torch.bfloat16, CPU)
    model = load_base(checkpoint, method, torch.bfloat16, CPU)
    targets = ("all-linear",) if dora else ("all-linear", "embed_tokens", "lm_head")
    add_lora(model, LoraSettings(rank=4, dora=dora, dropout=0.5, targets=targets))
    for adapter in adapters_of(model).values():
        adapter.lora_a.data.normal_()
        adapter.lora_b.data.normal_()
    with torch.no_grad():
        wanted = target_logprobs(plain, batch)
        with pytest.raises(ValueError, match="within"), adapters_off(model.train()):
            with adapters_off(model):
                pass
            assert torch.equal(target_logprobs(model, batch), wanted)
            assert torch.equal(model(batch.ids[None]), plain(batch.ids[None]))
            raise ValueError("within")
        assert not torch.equal(target_logprobs(model.eval(), batch), wanted)
