"""Each kind of damage is found and named; a sound model has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.checkpoint.model_folder import MANIFEST_NAME
from apr.convert.check_model import CheckReport, check_model
from apr.convert.import_checkpoint import import_checkpoint

from .models import folder, gguf_file, small_model

UP = "model.layers.1.mlp.up_proj.weight"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return folder(tmp_path / "m", small_model("Llama"))


def check(path: Path, **options: bool) -> CheckReport:
    return check_model(str(path), progress=False, **options)


def change(path: Path, edit: Callable[[Weights], object]) -> None:
    """Rewrite the weights of a folder after an edit."""
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def the_problem(report: CheckReport) -> str:
    (problem,) = report.problems
    assert "\n" not in problem
    assert not report.passed
    return problem


def test_sound_folder(model_folder: Path) -> None:
    report = check(model_folder, forward=True)
    assert report.problems == ()
    assert report.passed
    assert any("a llama model of 3 layers" in line for line in report.done)
    assert any("with a chat template" in line for line in report.done)
    assert any(line.startswith("forward pass over") for line in report.done)


def test_sound_gguf(tmp_path: Path) -> None:
    report = check(gguf_file(tmp_path / "m.gguf", small_model("Qwen2")), forward=True)
    assert report.problems == ()


@pytest.mark.parametrize(
    ("value", "counts"), [(float("nan"), "2 NaN and 0"), (float("-inf"), "0 NaN and 2")]
)
def test_numbers_that_are_none(model_folder: Path, value: float, counts: str) -> None:
    change(model_folder, lambda weights: weights[UP][3, 4:6].fill_(value))
    assert the_problem(check(model_folder)) == (f"tensor {UP}: {counts} infinite among 3840 values")


def test_infinities_that_cancel(model_folder: Path) -> None:
    def edit(weights: Weights) -> None:
        weights[UP][0, 0], weights[UP][0, 1] = float("inf"), float("-inf")

    change(model_folder, edit)
    assert "0 NaN and 2 infinite" in the_problem(check(model_folder))


def test_large_values_are_no_fault(model_folder: Path) -> None:
    change(model_folder, lambda weights: weights[UP].fill_(1e38))  # the sum is infinite
    assert check(model_folder).passed


def test_missing_tensor(model_folder: Path) -> None:
    change(model_folder, lambda weights: weights.pop(UP))
    assert f"tensor {UP} is missing" in the_problem(check(model_folder))


def test_surplus_tensor(model_folder: Path) -> None:
    change(model_folder, lambda weights: weights.update(extra=torch.zeros(1)))
    assert "tensor extra is unexpected" in the_problem(check(model_folder))


def test_wrong_shape(model_folder: Path) -> None:
    change(model_folder, lambda weights: weights.update({UP: torch.zeros(80, 47)}))
    assert f"tensor {UP} has shape (80, 47), expected (80, 48)" in the_problem(check(model_folder))


def test_truncated_file(model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in the_problem(check(model_folder))


def test_truncated_gguf(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    path.write_bytes(path.read_bytes()[:-100])
    assert "m.gguf" in the_problem(check(path))


def test_no_tokenizer(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in the_problem(check(model_folder))


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", small_model("Llama", vocab_size=260))
    assert "ids up to 268, the embedding 260 rows" in the_problem(check(path))


def test_broken_chat_template(model_folder: Path) -> None:
    (model_folder / "chat_template.jinja").write_text("{% for m in messages %}")
    assert the_problem(check(model_folder)).startswith("chat template: ")


def test_unknown_architecture(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba9"}))
    assert "mamba9" in the_problem(check(model_folder))


def test_several_problems_are_all_told(model_folder: Path) -> None:
    change(model_folder, lambda weights: weights[UP].fill_(float("nan")))
    (model_folder / "tokenizer.json").unlink()
    assert len(check(model_folder, forward=True).problems) == 2


def test_a_forward_pass_that_overflows(model_folder: Path) -> None:
    change(model_folder, lambda weights: weights["lm_head.weight"].fill_(3e38))
    assert check(model_folder).passed
    assert "logits that are no numbers" in the_problem(check(model_folder, forward=True))


# ---- folders written by apr know what they should hold ----


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    path = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    import_checkpoint(path, tmp_path / "out", progress=False)
    return tmp_path / "out"


def test_imported_folder_is_sound(imported: Path) -> None:
    report = check(imported)
    assert report.passed
    assert "tensors and files against the checksums of apr_manifest.json" in report.done


def test_one_changed_weight(imported: Path) -> None:
    change(imported, lambda weights: weights[UP][0, 0].add_(1e-3))
    assert the_problem(check(imported)) == (
        f"tensor {UP} is not what apr_manifest.json says was written"
    )


def test_one_changed_file(imported: Path) -> None:
    with (imported / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    assert "tokenizer_config.json was changed since" in the_problem(check(imported))
    (imported / "chat_template.jinja").unlink()
    assert any("chat_template.jinja cannot be read" in p for p in check(imported).problems)


def test_damaged_manifest(imported: Path) -> None:
    (imported / MANIFEST_NAME).write_text("{")
    assert "apr_manifest.json cannot be read as JSON" in the_problem(check(imported))
