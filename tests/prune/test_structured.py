"""Heads, channels and layers taken out: closed forms, and what transformers computes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apr.calibrate.perplexity import load_model, measure
from apr.checkpoint import open_checkpoint
from apr.common.errors import UsageError
from apr.model.families import config_from_checkpoint
from apr.model.load import load_transformer
from apr.prune.prune_run import run_prune
from apr.prune.smaller import hidden_steps, narrower, smaller_layers
from apr.prune.surgeon import choose_groups, columns_of, refit

from .conftest import inputs_of, load_hf
from .test_prune_run import FAMILIES, prepared

Small = Callable[[str], Path]


def problem(columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight (7, columns), inputs (200, columns)), correlated."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(200, columns, generator=generator) @ (mix + 2 * torch.eye(columns))
    return torch.randn(7, columns, generator=generator), x


def error_without(weight: torch.Tensor, x: torch.Tensor, kept: torch.Tensor) -> float:
    """||X W^T - X_kept B||^2 of the best B, by torch's least squares, in double."""
    a, target = x[:, kept].double(), x.double() @ weight.double().t()
    best = torch.linalg.lstsq(a, target).solution
    return float((target - a @ best).square().sum())


def test_refit_is_least_squares() -> None:
    weight, x = problem(12)
    kept = torch.tensor([0, 2, 3, 7, 8, 11])
    found = refit(weight, x.t() @ x, kept, damping=0.0)
    best = torch.linalg.lstsq(x[:, kept], x @ weight.t()).solution
    torch.testing.assert_close(found, best.t(), rtol=1e-3, atol=1e-3)


def test_refit_with_damping_minimizes_what_its_docstring_says() -> None:
    weight, x = problem(12, 1)
    kept, damping = torch.tensor([1, 4, 5, 9]), 0.05
    hessian = x.t() @ x
    ridge = (damping * hessian.diagonal().mean()).sqrt()
    # As rows of a larger least-squares problem.
    a = torch.cat([x[:, kept], ridge * torch.eye(len(kept))])
    target = torch.cat([x @ weight.t(), ridge * weight[:, kept].t()])
    best = torch.linalg.lstsq(a, target).solution.t()
    torch.testing.assert_close(refit(weight, hessian, kept, damping), best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_the_first_group_to_go_is_the_best_of_all(size: int) -> None:
    """Against trying each by least squares."""
    for seed in range(5):
        weight, x = problem(12, seed)
        count = 12 // size
        kept, _ = choose_groups(weight, x.t() @ x, size, count - 1, damping=1e-6)
        errors = []
        for gone in range(count):
            rest = torch.tensor([g for g in range(count) if g != gone])
            errors.append(error_without(weight, x, columns_of(rest, size)))
        (taken,) = set(range(count)) - set(kept.tolist())
        assert taken == min(range(count), key=errors.__getitem__)


def test_many_groups_are_nearly_the_best_of_all_choices() -> None:
    weight, x = problem(10, 3)
    kept, _ = choose_groups(weight, x.t() @ x, 1, 6, damping=1e-6)
    errors = sorted(
        error_without(weight, x, torch.tensor(c)) for c in itertools.combinations(range(10), 6)
    )
    ours = error_without(weight, x, kept)
    assert errors.index(min(errors, key=lambda e: abs(e - ours))) <= 10  # of 210
    assert ours < 0.5 * errors[len(errors) // 2]


@pytest.mark.parametrize("family", (*FAMILIES, "Qwen3"))
@pytest.mark.parametrize(
    ("method", "kv_heads"), [("structured", 1), ("depth", None), ("width", None)]
)
def test_transformers_loads_the_smaller_model_with_our_logits(
    family: str, method: str, kv_heads: int | None, small: Small, text: Path, tmp_path: Path
) -> None:
    if (family, method) == ("Gemma3", "width"):
        with pytest.raises(UsageError, match="multiplied by the root of the hidden size"):
            prepared(small(family), text, method, sparsity=0.4)
        return
    at = prepared(small(family), text, method, sparsity=0.35, kv_heads=kv_heads)
    report = run_prune(at, tmp_path / "out", progress=False)
    theirs, ours = load_hf(tmp_path / "out"), load_transformer(tmp_path / "out", torch.float32)
    ids = torch.arange(3, 63)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    parameters = sum(p.numel() for p in theirs.parameters())
    assert report.parameters == parameters < report.input_parameters
    file = sum(t.numel() for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert file * 4 == report.nbytes < report.input_bytes
    config = config_from_checkpoint(open_checkpoint(tmp_path / "out"))
    if method == "width":
        assert config.hidden_size == theirs.config.hidden_size == 32
    elif method == "depth":
        assert config.num_layers == len(theirs.model.layers) == 2
        assert report.layers.count(1.0) == 1
    else:
        assert (config.num_kv_heads, config.num_heads) == (1, 2)
        assert config.intermediate_size < at.stream.config.intermediate_size


def test_structured_matrices_are_refitted_to_what_the_smaller_model_computes(
    small: Small, text: Path, tmp_path: Path
) -> None:
    """Inputs of down_proj in the smaller model, those of all channels of the same layer made from
    the unpruned gate and up: the best matrix is the one that was written.
    """
    at = prepared(small("Llama"), text, "structured", sparsity=0.3, kv_heads=0)
    run_prune(at, tmp_path / "out", progress=False)
    assert at.calibration is not None
    old, model = load_hf(small("Llama")).state_dict(), load_hf(tmp_path / "out")
    inputs = inputs_of(model, at.calibration.ids)
    for layer in range(3):
        name = f"model.layers.{layer}.mlp."
        x = inputs[name + "up_proj.weight"]
        gate, up = x @ old[name + "gate_proj.weight"].t(), x @ old[name + "up_proj.weight"].t()
        inner = torch.nn.functional.silu(gate) * up
        weight, hessian = old[name + "down_proj.weight"], inner.t() @ inner
        written = model.state_dict()[name + "down_proj.weight"]
        kept, used = choose_groups(weight, hessian, 1, written.shape[1], 0.01)
        assert torch.equal(
            model.state_dict()[name + "up_proj.weight"], old[name + "up_proj.weight"][kept]
        )
        torch.testing.assert_close(
            written, refit(weight, hessian, kept, used), rtol=1e-2, atol=1e-2
        )


def test_chosen_channels_lose_less_than_random_ones(
    small: Small, text: Path, tmp_path: Path
) -> None:
    """Both refitted; on the calibration text, of which a random model has learnt nothing: so the
    outputs are compared with the unpruned model's.
    """
    whole = load_transformer(small("Llama"), torch.float32)
    ids = None
    lost = {}
    for importance in ("activations", "random"):
        at = prepared(small("Llama"), text, "structured", sparsity=0.3, importance=importance)
        run_prune(at, tmp_path / importance, progress=False)
        ids = at.calibration.ids if at.calibration else ids
        assert ids is not None
        with torch.no_grad():
            found = load_transformer(tmp_path / importance, torch.float32)(ids)
            lost[importance] = float((found - whole(ids)).square().mean())
    assert lost["activations"] < 0.8 * lost["random"]


def test_the_layer_that_does_nothing_goes(small: Small, text: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    idle = tmp_path / "idle"
    idle.mkdir()
    for file in small("Llama").iterdir():
        (idle / file.name).write_bytes(file.read_bytes())
    weights = load_file(idle / "model.safetensors")
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        weights[f"model.layers.1.{name}"].zero_()
    save_file(weights, idle / "model.safetensors", metadata={"format": "pt"})
    report = run_prune(prepared(idle, text, "depth", sparsity=0.3), tmp_path / "o", progress=False)
    assert report.layers == (0.0, 1.0, 0.0)
    manifest = json.loads((tmp_path / "o" / "apr_manifest.json").read_text())
    assert manifest["settings"]["layer_influence"][1] == pytest.approx(0, abs=1e-6)
    before, after = load_model(str(idle), "float32"), load_model(str(tmp_path / "o"), "float32")
    same = measure(before, text.read_text(), window=64).perplexity
    assert measure(after, text.read_text(), window=64).perplexity == pytest.approx(same, rel=1e-6)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("structured", {"sparsity": 0.995}, "would leave an MLP of 0 channels"),
        ("structured", {"sparsity": 0.001}, "too little to take a head or 8 channels"),
        ("structured", {"kv_heads": 2}, "`kv_heads` 2 of 2 cannot be taken"),
        ("structured", {"pattern": "2:4", "sparsity": None}, "`pattern` has no meaning"),
        ("structured", {"allocation": "owl"}, "it is for magnitude, wanda, sparsegpt"),
        ("depth", {"sparsity": 0.05}, "`sparsity` 0.05 drops 0 of 3 layers"),
        ("depth", {"sparsity": 0.95}, "drops 3 of 3 layers"),
        ("width", {"sparsity": 0.05}, "leaves 48 of 48 hidden dimensions"),
        ("depth", {"kv_heads": 1}, "`kv_heads` has no meaning with `method` depth"),
        ("depth", {"layers": (1,)}, "`layers` has no meaning with `method` depth"),
        ("structured", {"ignore": ("q_proj",)}, "`ignore` has no meaning with `method` struct"),
        ("wanda", {"importance": "random"}, "`importance` has no meaning with `method` wanda"),
    ],
)
def test_bad_settings(
    method: str, changes: dict[str, Any], message: str, small: Small, text: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        prepared(small("Llama"), text, method, **changes)


@pytest.mark.parametrize(
    ("method", "sparsity", "note"),
    [
        ("width", 0.4, r"33.3 % .* go, not 40 %: hidden dimensions go in steps of 8$"),
        ("depth", 0.5, r"66.7 % .* go, not 50 %: whole layers go, of 3"),
        ("depth", 1 / 3, None),
    ],
)
def test_why_more_goes_than_was_asked(
    method: str, sparsity: float, note: str | None, small: Small, text: Path
) -> None:
    notes = prepared(small("Llama"), text, method, sparsity=sparsity).notes
    found = [n for n in notes if "go, not" in n]
    assert not found if note is None else re.search(note, found[0])


def test_steps_of_the_hidden_size_that_heads_must_divide(small: Small) -> None:
    config = config_from_checkpoint(open_checkpoint(small("Llama")))
    nine = replace(config, num_heads=9, num_kv_heads=3, hidden_size=576)
    assert narrower(nine, 0.2).hidden_size == 432
    assert "steps of 72, a multiple of 8 and of the 9 heads" in hidden_steps(nine)
    assert hidden_steps(replace(nine, family="qwen2")) == "hidden dimensions go in steps of 8"


def test_heads_that_transformers_would_refuse(small: Small) -> None:

    config = config_from_checkpoint(open_checkpoint(small("Llama")))
    three = replace(config, num_heads=10, num_kv_heads=5, hidden_size=40, head_dim=4)
    with pytest.raises(UsageError, match="does not divide the hidden size 40"):
        smaller_layers(three, 0.5, 2)  # 6 heads
    assert smaller_layers(three, 0.5, None).num_heads == 8  # one group fewer than half


def test_dimensions_that_carry_nothing_go_without_a_trace(
    small: Small, text: Path, tmp_path: Path
) -> None:
    """A model whose hidden state has 16 empty dimensions computes the same without them."""
    from safetensors.torch import save_file

    wide = tmp_path / "wide"
    wide.mkdir()
    for file in small("Llama").iterdir():
        (wide / file.name).write_bytes(file.read_bytes())
    weights = load_file(wide / "model.safetensors")
    empty = torch.randperm(48, generator=torch.Generator().manual_seed(1))[:16]
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[empty] = 0
        elif "embed_tokens" in name:
            tensor[:, empty] = 0
    save_file(weights, wide / "model.safetensors", metadata={"format": "pt"})
    run_prune(prepared(wide, text, "width", sparsity=1 / 3), tmp_path / "out", progress=False)
    ids = torch.arange(3, 63)[None]
    before, after = (load_transformer(tmp_path / n, torch.float32) for n in ("wide", "out"))
    with torch.no_grad():
        # The norms' epsilon counts for another size: not the same to the last digit.
        torch.testing.assert_close(after(ids), before(ids), rtol=1e-3, atol=1e-3)
