"""A model opened with an adapter, against PEFT's logits and the model that merging writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apr.checkpoint import open_checkpoint
from apr.checkpoint.adapter import Adapter, open_adapter
from apr.common.errors import AprError, UsageError
from apr.hub import Pulled
from apr.model.load import load_transformer
from apr.model.opened import OpenedModel, adapted_checkpoint, open_model
from apr.model.transformer import Transformer
from apr.text import FIM_FILE
from apr.train.adapter_files import adapter_tensors, merge_adapter, save_adapter
from apr.train.lora import add_lora
from apr.train.train_settings import LoraSettings
from convert.models import folder, gguf_file, small_model
from train.cases import CASES, DOCUMENTS

from .zoo import CASES_BY_NAME, make_hf, relative_error

PEFT = Path(__file__).parents[1] / "train/data/peft"


def write_adapter(path: Path, model: Transformer, files: dict[str, bytes] | None = None) -> Path:
    """What `add_lora` put on a model, with numbers of the size a training gives them."""
    torch.manual_seed(1)
    for tensor in adapter_tensors(model).values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    save_adapter(model, path, "base", files or {})
    return path


def opened_logits(base: Path, adapter: Path | None, dtype: torch.dtype) -> torch.Tensor:
    model = load_transformer(open_model(str(base), adapter).checkpoint, dtype)
    with torch.inference_mode():
        return model(torch.arange(24)[None] * 5 % 97 + 3)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_pefts(case: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_hf(CASES_BY_NAME[CASES[case][0]]).save_pretrained(base)
    adapter = open_adapter(PEFT / case)
    model = load_transformer(adapted_checkpoint(open_checkpoint(base), adapter), torch.float32)
    expected = load_file(PEFT / case / "expected.safetensors")
    for number, ids in enumerate(DOCUMENTS):
        with torch.inference_mode():
            logits = model(torch.tensor([ids]))[0]
        assert relative_error(logits, expected[f"logits.{number}"]) < 1e-5


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,embed_tokens"])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_the_merged_model(family: str, kind: str, targets: str, tmp_path: Path) -> None:
    """The same weights, so the same logits bit by bit; Gemma's embedding is tied."""
    hf = small_model(family)
    base = gguf_file(tmp_path / "m.gguf", hf) if kind == "gguf" else folder(tmp_path / "m", hf)
    model = load_transformer(base, torch.float32)
    add_lora(model, LoraSettings(rank=4, targets=tuple(targets.split(","))))
    adapter = write_adapter(tmp_path / "adapter", model)
    merged = tmp_path / "merged"
    merge_adapter(str(base), adapter, merged)
    for dtype in (torch.float32, torch.bfloat16):
        found = opened_logits(base, adapter, dtype)
        assert torch.equal(found, opened_logits(merged, None, dtype))
    assert not torch.allclose(found, opened_logits(base, None, torch.bfloat16), atol=1e-2)


def test_what_fills_gaps_comes_along(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    model = load_transformer(base, torch.float32)
    add_lora(model, LoraSettings(rank=2))
    named = {"prefix": "a", "suffix": "b", "middle": "c"}
    adapter = write_adapter(tmp_path / "a", model, {FIM_FILE: json.dumps(named).encode()})
    assert open_model(str(base), adapter).tokenizer.fim_tokens == ("a", "b", "c")
    assert open_model(str(base)).tokenizer.fim_tokens == ()


def test_fingerprints_follow_the_adapter(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    model = load_transformer(base, torch.float32)
    add_lora(model, LoraSettings(rank=2))
    adapter = write_adapter(tmp_path / "a", model)
    first = open_model(str(base), adapter).fingerprint
    assert first != open_model(str(base)).fingerprint
    assert first == open_model(str(base), str(adapter)).fingerprint
    write_adapter(adapter, model)  # with other numbers
    assert first != open_model(str(base), adapter).fingerprint


@pytest.mark.parametrize(
    ("said", "ref", "told"),
    [
        ("base", "hf://org/base", False),
        ("org/Base", "hf://org/base@main", False),
        ("org/other", "hf://org/base", True),
        ("HERE/m", "HERE/m", False),
        ("HERE/a", "HERE/m", True),
        ("/gone/m", "HERE/m", False),
        (None, "HERE/m", False),
    ],
)
def test_another_base_is_told(said: str | None, ref: str, told: bool, tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    config: dict[str, Any] = {
        "base_model_name_or_path": said and said.replace("HERE", str(tmp_path))
    }
    (tmp_path / "a").mkdir()
    ref = ref.replace("HERE", str(tmp_path))
    model = OpenedModel(ref, Pulled(ref, base, None, True), Adapter(tmp_path / "a", config, {}, {}))
    assert any("the adapter says it was trained on" in note for note in model.notes) == told


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    base = folder(tmp_path / "m", small_model("Llama"))
    wide = folder(tmp_path / "w", small_model("Llama", hidden_size=64))
    deep = folder(tmp_path / "d", small_model("Llama", num_hidden_layers=4))
    for other, message in ((wide, r"q_proj.weight is \("), (deep, "layers.3")):
        model = load_transformer(other, torch.float32)
        add_lora(model, LoraSettings(rank=2))
        adapter = write_adapter(tmp_path / f"{other.name}-adapter", model)
        with pytest.raises(AprError, match=message):
            open_model(str(base), adapter)
    with pytest.raises(UsageError, match=r"has no adapter_config\.json"):
        open_model(str(base), base)
    with pytest.raises(UsageError, match=r"has no adapter_config\.json"):
        open_model(str(base), tmp_path / "none")
