"""config.json of layers that come from several models."""

from __future__ import annotations

from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.merge.stacking import Origin, stacked_config
from apr.model.families import config_from_hf

GEMMA = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "sliding_window": 16,
    "sliding_window_pattern": 3,
}


def stack(*pieces: tuple[dict[str, Any], int, int]) -> list[Origin]:
    """Layers first .. end of each (config, first, end)."""
    return [
        Origin(config["name"], config, config["num_hidden_layers"], layer)
        for config, first, end in pieces
        for layer in range(first, end)
    ]


def model(name: str, layers: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "num_hidden_layers": layers, "hidden_size": 64, **more}


def test_each_layer_keeps_the_entry_of_its_own_model() -> None:
    a = model("a", 3, layer_types=["x", "y", "z"], eos_token_id=[1, 2, 3])
    b = model("b", 5, layer_types=["p", "q", "r", "s", "t"])
    stacked = stacked_config(a, stack((a, 0, 2), (b, 3, 5), (a, 2, 3)))
    assert stacked["layer_types"] == ["x", "y", "s", "t", "z"]
    assert stacked["num_hidden_layers"] == 5 and stacked["eos_token_id"] == [1, 2, 3]
    assert a["layer_types"] == ["x", "y", "z"]


def test_nested_configurations() -> None:
    def wrapped(config: dict[str, Any]) -> dict[str, Any]:
        return {"model_type": "vision", "name": config["name"], "text_config": config}

    a, b = model("a", 2, no_rope_layers=[1, 0]), model("b", 3, no_rope_layers=[0, 1, 1])
    origins = [o._replace(config=wrapped(dict(o.config))) for o in stack((a, 1, 2), (b, 0, 3))]
    stacked = stacked_config(wrapped(a), origins)
    assert stacked["text_config"]["no_rope_layers"] == [0, 0, 1, 1]
    assert stacked["text_config"]["num_hidden_layers"] == 4
    assert "num_hidden_layers" not in stacked


def test_a_list_that_only_some_models_have() -> None:
    a, b = model("a", 2), model("b", 3, kinds=["full", "full", "full"])
    assert "kinds" not in stacked_config(a, stack((a, 0, 2), (b, 0, 3)))
    with pytest.raises(UsageError, match="of a does not say `kinds` of each of its 2 layers"):
        stacked_config(b, stack((a, 0, 2), (b, 0, 3)))
    b["kinds"][1] = "half"
    with pytest.raises(UsageError, match="of a does not say `kinds`"):
        stacked_config(a, stack((a, 0, 2), (b, 0, 3)))


def test_numbers_of_layers_move_along() -> None:
    a, b = model("a", 3, mlp_only_layers=[0, 2]), model("b", 4, mlp_only_layers=[3])
    stacked = stacked_config(a, stack((b, 2, 4), (a, 0, 3)))
    assert stacked["mlp_only_layers"] == [1, 2, 4]


def test_layers_of_another_width_do_not_stack() -> None:
    a, b = model("a", 2), model("b", 2, hidden_size=32)
    with pytest.raises(UsageError, match="layers of b are 32 wide, the others 64"):
        stacked_config(a, stack((a, 0, 2), (b, 0, 1)))


def test_a_pattern_of_windows_is_written_out_where_the_stack_breaks_it() -> None:
    a, b = model("a", 6, **GEMMA), model("b", 9, **GEMMA)
    whole = config_from_hf(b).sliding_layers
    assert whole == (True, True, False) * 3
    broken = stacked_config(a, stack((a, 0, 4), (b, 5, 9)))
    slides = config_from_hf(broken).sliding_layers
    assert slides == (*whole[:4], *whole[5:])
    assert "layer_types" not in stacked_config(a, stack((a, 0, 3), (b, 3, 9)))
    typed = {**b, "layer_types": ["full_attention"] * 8 + ["sliding_attention"]}
    mixed = config_from_hf(stacked_config(a, stack((a, 0, 2), (typed, 7, 9)))).sliding_layers
    assert mixed == (True, True, False, True)


def test_a_window_that_only_the_other_model_has() -> None:
    sizes = {"intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 9}
    a = model("a", 2, model_type="qwen2", **sizes)
    b = model("b", 4, model_type="qwen2", use_sliding_window=True, sliding_window=8,
              max_window_layers=2, **sizes)  # fmt: skip
    config = config_from_hf(stacked_config(a, stack((a, 0, 1), (b, 1, 4))))
    assert config.sliding_layers == (False, False, True, True) and config.sliding_window == 8
