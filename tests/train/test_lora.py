"""LoRA against PEFT's forward, loss and gradients (stored by run_peft.py; PEFT 0.21.2, fp32)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apr.common.errors import AprError, UsageError
from apr.model.transformer import Transformer
from apr.train.adapter_files import adapter_names, adapter_tensors, load_adapter, save_adapter
from apr.train.lora import adapters_of, add_lora, matching_modules
from apr.train.objective import hidden_states, token_loss
from apr.train.packing import Batch, Document, make_batch
from apr.train.train_settings import LoraSettings
from model.zoo import CASES_BY_NAME, make_hf, make_ours, relative_error

from .cases import CASES, DOCUMENTS, LABELS

DATA = Path(__file__).parent / "data" / "peft"
# fp32 sums of a few hundred products in another order than theirs.
TOLERANCE = 1e-5


def base_model(case: str) -> Transformer:
    return make_ours(make_hf(CASES_BY_NAME[CASES[case][0]]))


def both_documents() -> Batch:
    return make_batch(
        [
            Document(np.array(ids, np.int32), np.array([label != -100 for label in labels]))
            for ids, labels in zip(DOCUMENTS, LABELS, strict=True)
        ]
    )


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    """Under the names `adapter_tensors` gives the weights."""
    found = {}
    for name, adapter in adapters_of(model).items():
        key = f"base_model.model.{name}"
        a, b = adapter_names(adapter)
        found[f"{key}.{a}"] = adapter.lora_a.grad
        found[f"{key}.{b}"] = adapter.lora_b.grad
        if adapter.magnitude is not None:
            found[f"{key}.lora_magnitude_vector"] = adapter.magnitude.grad
    return found


def check_numbers(case: str, folder: Path, recompute: bool) -> None:
    expected = load_file(folder / "expected.safetensors")
    model = base_model(case)
    load_adapter(model, folder)
    batch = both_documents()
    with torch.no_grad():
        logits = model.logits(hidden_states(model, batch))
    for number, ids in enumerate(DOCUMENTS):
        start = batch.starts[number]
        ours = logits[start : start + len(ids)]
        assert relative_error(ours, expected[f"logits.{number}"]) < TOLERANCE
    loss = token_loss(model, batch, recompute)
    loss.backward()
    assert loss.item() == pytest.approx(float(expected["loss"]), rel=TOLERANCE)
    ours = gradients(model)
    assert {f"grad.{key}" for key in ours} == {k for k in expected if k.startswith("grad.")}
    for key, gradient in ours.items():
        assert relative_error(gradient, expected[f"grad.{key}"]) < TOLERANCE, key


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", CASES)
def test_forward_loss_and_gradients_equal_peft(case: str, recompute: bool) -> None:
    check_numbers(case, DATA / case, recompute)


@pytest.mark.slow
def test_peft_still_gives_these_numbers_and_reads_our_files(tmp_path: Path) -> None:
    python = os.environ.get("APR_PEFT_PYTHON")
    if not python:
        pytest.skip("APR_PEFT_PYTHON names no Python with peft and transformers")
    for name in {model for model, _ in CASES.values()}:
        make_hf(CASES_BY_NAME[name]).save_pretrained(tmp_path / "models" / name)
    here = Path(__file__).parent
    command = [python, here / "run_peft.py", tmp_path / "models", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    for case, (model_name, _) in CASES.items():
        check_numbers(case, tmp_path / "out" / case, False)
        model = base_model(case)
        load_adapter(model, tmp_path / "out" / case)
        save_adapter(model, tmp_path / "ours" / case, str(tmp_path / "models" / model_name), {})
    command = [python, here / "load_in_peft.py", tmp_path / "models", tmp_path / "ours"]
    subprocess.run(command, check=True, capture_output=True)
    for case in CASES:
        theirs = load_file(tmp_path / "ours" / f"{case}.safetensors")
        expected = load_file(tmp_path / "out" / case / "expected.safetensors")
        for key in theirs:
            assert relative_error(theirs[key], expected[key]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_what_was_loaded(case: str, tmp_path: Path) -> None:
    model = base_model(case)
    load_adapter(model, DATA / case)
    save_adapter(model, tmp_path / "again", "base", {"note.txt": b"x"})
    theirs = load_file(DATA / case / "adapter_model.safetensors")
    ours = load_file(tmp_path / "again" / "adapter_model.safetensors")
    own = {key.replace("_vector.weight", "_vector") for key in theirs if "base_layer" not in key}
    assert own == ours.keys()
    other = base_model(case)
    load_adapter(other, tmp_path / "again")
    again = adapter_tensors(other)
    for key, tensor in adapter_tensors(model).items():
        assert torch.equal(tensor, again[key])
    for name, adapter in adapters_of(model).items():
        assert adapters_of(other)[name].scaling == pytest.approx(adapter.scaling, rel=1e-12)
    assert (tmp_path / "again" / "note.txt").read_bytes() == b"x"


def test_a_fresh_adapter_changes_nothing() -> None:
    model = base_model("dora")
    batch = both_documents()
    with torch.no_grad():
        before = hidden_states(model, batch)
        add_lora(model, LoraSettings(rank=3, dora=True, targets=("all-linear",)))
        after = hidden_states(model, batch)
    assert relative_error(after, before) < TOLERANCE


def test_dropout_hides_inputs_in_training_only() -> None:
    """E over masks of the update equals the update: inverted dropout (Srivastava et al. 2014)."""
    torch.manual_seed(0)
    model = base_model("plain")
    load_adapter(model, DATA / "plain", dropout=0.3)
    adapter = next(iter(adapters_of(model).values()))
    x = torch.randn(5, adapter.base.in_features)
    with torch.no_grad():
        still = adapter.eval()(x)
        assert torch.equal(still, adapter(x))
        drawn = torch.stack([adapter.train()(x) for _ in range(4000)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert not torch.equal(drawn[0], drawn[1])
    assert ((drawn.mean(0) - still).abs() < 5 * error + 1e-5).all()


def test_no_gradient_below_the_lowest_adapter() -> None:
    """Layers below keep nothing for a backward pass: their outputs do not ask for a gradient."""
    model = base_model("plain")
    add_lora(model, LoraSettings(targets=("*.layers.2.*.v_proj",)))
    asked = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, i, out: asked.append(out.requires_grad))
    token_loss(model, both_documents()).backward()
    assert asked == [False, False, True]
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == [
        "model.layers.2.self_attn.v_proj.lora_a",
        "model.layers.2.self_attn.v_proj.lora_b",
    ]


def test_targets() -> None:
    model = base_model("plain")
    assert len(matching_modules(model, ("q_proj", "v_proj"))) == 6
    assert len(matching_modules(model, ("all-linear",))) == 21
    assert matching_modules(model, ("lm_head",)) == ["lm_head"]
    assert matching_modules(model, ("*.layers.[12].mlp.up_proj",)) == [
        "model.layers.1.mlp.up_proj",
        "model.layers.2.mlp.up_proj",
    ]
    with pytest.raises(UsageError, match=r"called wq .*there are embed_tokens, q_proj, k_proj"):
        matching_modules(model, ("q_proj", "wq"))
    fused = make_ours(make_hf(CASES_BY_NAME["phi3"]))
    assert matching_modules(fused, ("q_proj", "v_proj"))[0].endswith("qkv_proj")


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"rank": 0}, "`rank`"),
        ({"alpha": 0.0}, "`alpha`"),
        ({"alpha": float("nan")}, "`alpha`"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"targets": ()}, "`targets`"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        LoraSettings(**changes)  # type: ignore[arg-type]


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    shutil.copytree(DATA / "plain", tmp_path / "plain")
    with pytest.raises(AprError, match=r"does not have|is \("):
        load_adapter(make_ours(make_hf(CASES_BY_NAME["llama-wide-heads"])), tmp_path / "plain")
