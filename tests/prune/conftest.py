"""Small model folders to prune, and their linear layers' inputs as transformers has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convert.models import folder, small_model

TEXT = "def f(x):\n    return [g(y) for y in x if y is not None]\n\n\n" * 60


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small random model of a family ("Llama", "Qwen2", "Gemma3", "Phi3")."""
    made: dict[str, Path] = {}
    changes = {
        "Gemma3": {"head_dim": 16, "sliding_window": 8, "layer_types": None},
        "Qwen3": {"head_dim": 16},
    }

    def make(family: str) -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family) / "model"
            made[family] = folder(path, small_model(family, **changes.get(family, {})))
        return made[family]

    return make


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def load_hf(path: Path) -> Any:
    """transformers' model of a folder, fp32; every weight must be used."""
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model.eval()


@torch.no_grad()
def inputs_of(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """fp32 (tokens, in), by the name of each weight of a layer."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):

            def keep(_: Any, given: tuple[torch.Tensor], name: str = name) -> None:
                found[f"model.layers.{name}.weight"] = given[0].flatten(0, -2)

            handles.append(module.register_forward_pre_hook(keep))
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found
