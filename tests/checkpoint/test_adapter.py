"""Adapters against PEFT's own merge of them (stored by run_peft.py; PEFT 0.21.2, fp32)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.checkpoint.adapter import open_adapter
from apr.common.errors import AprError, UsageError
from merge.tiny_models import tiny_weights, write_models

DATA = Path(__file__).parent / "data" / "peft"
VARIANTS = ("plain", "rslora", "dora", "embedding", "patterns", "saved")


def merged(folder: Path, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base's tensors with the adapter, three rows at a time."""
    adapter = open_adapter(folder)
    adapter.check({name: tuple(tensor.shape) for name, tensor in base.items()})
    found = {}
    for name, tensor in base.items():
        rows = tensor.float().view(len(tensor), -1)
        parts = [
            adapter.apply(name, rows[i : i + 3], i, min(i + 3, len(rows)))
            for i in range(0, len(rows), 3)
        ]
        found[name] = torch.cat(parts).view(tensor.shape)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_peft(variant: str) -> None:
    base = tiny_weights()["base"]
    theirs = load_file(DATA / f"{variant}.safetensors")
    ours = merged(DATA / variant, base)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # Weights of size 1, sums of at most 12 products in fp32.
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=2e-6)
    changed = {name for name in base if not torch.equal(base[name], theirs[name])}
    assert changed <= open_adapter(DATA / variant).targets


@pytest.mark.slow
def test_peft_still_merges_the_same(tmp_path: Path) -> None:
    python = os.environ.get("APR_PEFT_PYTHON")
    if not python:
        pytest.skip("APR_PEFT_PYTHON names no Python with peft and transformers")
    write_models(tmp_path / "models", {"base": tiny_weights()["base"]})
    script = Path(__file__).parent / "run_peft.py"
    command = [python, script, tmp_path / "models" / "base", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    for variant in VARIANTS:
        theirs = load_file(tmp_path / "out" / f"{variant}.safetensors")
        ours = merged(tmp_path / "out" / variant, tiny_weights()["base"])
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=2e-6)


def changed_config(tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "adapter"
    shutil.copytree(DATA / "plain", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"kasa_config": {"r": 1}}, "kasa_config"),
        ({"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        open_adapter(changed_config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 3}, "q_proj has rank 2, adapter_config.json says 3"),
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 4}}, "layers.0.self_attn.q_proj has rank"),
        ({"lora_alpha": "six"}, "alpha_pattern or its default .* 'six'"),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern holds '\('"),
        ({"alpha_pattern": [4]}, "alpha_pattern in adapter_config.json is no object"),
        ({"use_dora": True}, "use_dora is True, but .* has no magnitude"),
    ],
)
def test_a_configuration_of_another_adapter(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """PEFT refuses the ranks too; without magnitudes it would start DoRA anew."""
    with pytest.raises(AprError, match=message):
        open_adapter(changed_config(tmp_path, **changes))


def test_damage_is_one_line(tmp_path: Path) -> None:
    folder = changed_config(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    lost = next(key for key in tensors if key.endswith("lora_B.weight"))
    save_file({k: v for k, v in tensors.items() if k != lost}, folder / "adapter_model.safetensors")
    with pytest.raises(AprError, match="factors of model"):
        open_adapter(folder)
    save_file({"base_model.model.x.ia3_l": torch.ones(2)}, folder / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="ia3_l"):
        open_adapter(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UsageError, match="pickle"):
        open_adapter(folder)
    with pytest.raises(UsageError, match="adapter_config"):
        open_adapter(tmp_path)


def test_a_base_it_was_not_made_for_is_refused() -> None:
    adapter = open_adapter(DATA / "plain")
    shapes = {name: tuple(t.shape) for name, t in tiny_weights()["base"].items()}
    name = "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(AprError, match=r"layers.1.self_attn.q_proj.weight is \(8, 8\)"):
        adapter.check({**shapes, name: (16, 8)})
    del shapes[name]
    with pytest.raises(AprError, match="does not have"):
        adapter.check(shapes)
