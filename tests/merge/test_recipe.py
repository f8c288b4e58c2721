"""MergeKit's YAML read strictly, and the command line's short form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.merge.recipe import make_settings, read_settings, value_of
from apr.merge.short_form import ShortForm

LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b"}],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": None, "modules": {"vision": {}}}, "modules: only one, called default"),
        ({"models": None, "modules": {"default": 3}}, "modules.default: .*dictionary"),
        ({"models": None, "modules": {"default": {}}, "parameters": [1]}, "parameters: .*dict"),
        ({"base_model": ""}, "base_model: .*1 character"),
        ({"chat_tempate": "auto"}, "'chat_tempate' is unknown; did you mean 'chat_template'"),
        ({"models": [{"model": "a", "paramters": {}}]}, r"models\.0.*mean 'parameters'"),
        ({"models": [{"model": "a", "parameters": {"t": {"valu": 1}}}]}, "parameters.t.valu"),
        ({"models": [{"model": {"path": "a"}}]}, "models.0.model: .*string"),
        ({"models": [{"model": {"model": {"revision": "x"}}}]}, "models.0.model: .*needs a path"),
        ({"base_model": {"model": "a", "override_architecture": "X"}}, "override_architecture"),
        ({"parameters": {"t": [0.5, {"value": 1}]}}, "parameters.t.0: .*dictionary"),
        ({"parameters": {"t": [{"filter": "mlp"}, {"value": 1}]}}, "parameters.t.0.value: .*req"),
        ({"parameters": {"t": [[1, 2]]}}, "parameters.t.0: "),
        ({"merge_method": ["ties"]}, "merge_method: .*string"),
        ({"models": None}, "either models or slices"),
        ({"slices": [{"sources": []}]}, "slices"),
        ({"dtype": "int8"}, "dtype: .*bfloat16"),
        ({"tokenizer_source": "base", "tokenizer": {}}, "either tokenizer_source or tokenizer"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        make_settings({**LINEAR, **changes}, "m.yml")
    assert "m.yml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ({"sources": [{"model": "a", "layer_range": [3, 2]}]}, "layer_range"),
        (
            {
                "sources": [
                    {"model": "a", "layer_range": [0, 3]},
                    {"model": "b", "layer_range": [0, 4]},
                ]
            },
            "same number",
        ),
        ({"sources": [{"model": "a", "layer_range": [0, 3]}], "base_modle": "b"}, "base_model"),
    ],
)
def test_slices_are_checked(piece: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_settings({"merge_method": "passthrough", "slices": [piece]})


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "\x00", "a: 1\n---\nb: 2"])
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str) -> None:
    file = tmp_path / "m.yml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"m\.yml"):
        read_settings(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(tmp_path / "none.yml")


def test_settings_survive_their_own_yaml(tmp_path: Path) -> None:
    settings = make_settings(
        {
            "merge_method": "ties",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 2], "parameters": {"weight": [0, 1]}},
                        {"model": "b", "layer_range": [1, 3]},
                    ],
                    "parameters": {"density": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}]},
                }
            ],
            "base_model": "c",
            "dtype": "bf16",
        }
    )
    file = tmp_path / "m.yml"
    file.write_text(settings.to_yaml())
    assert read_settings(file) == settings
    assert settings.references() == ["c", "a", "b"]


def test_gradients_and_conditions() -> None:
    settings = make_settings(
        {
            **LINEAR,
            "parameters": {
                "plain": 0.5,
                "curve": [0, 1, 0],
                "by_name": [
                    {"filter": "mlp", "value": [1, 3]},
                    {"filter": "*.q_proj.*", "value": 7},
                    {"layers": [2, 4], "value": 9},
                ],
                "flags": [True, False],
            },
        }
    ).parameters

    def value(key: str, name: str = "x", t: float = 0.0, layer: int | None = None) -> Any:
        return value_of(settings[key], name, t, layer, lambda value: value)

    assert value("plain") == 0.5
    assert [value("curve", t=t) for t in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 0]
    assert value("by_name", "layers.0.mlp.up", t=0.5) == 2
    assert value("by_name", "layers.0.q_proj.weight") == 7
    assert value("by_name", "layers.2.norm", layer=2) == 9
    assert value("by_name", "layers.4.norm", layer=4) is None
    assert value("by_name", "embed") is None
    numbers = make_settings({**LINEAR, "parameters": {"t": ["1e-1", "5e-1"]}}).parameters["t"]
    assert value_of(numbers, "x", 0.5, None, float) == pytest.approx(0.3)
    assert value_of(numbers, "x", 0.5, None, str) == "1e-1"
    assert value("flags", t=0.4) is True and value("flags", t=1.0) is False


def flags(*models: str, **options: Any) -> Any:
    return ShortForm(models, **options).settings()


def test_flags_say_what_yaml_says() -> None:
    found = flags("a", "b", strategy="ties", base_model="c", weights=(0.7, 0.3), density=(0.2,),
                  lambda_=1.5, parameter=("normalize=false",), dtype="bf16")  # fmt: skip
    assert found == make_settings(
        {
            "merge_method": "ties",
            "base_model": "c",
            "models": [
                {"model": "a", "parameters": {"weight": 0.7, "density": 0.2}},
                {"model": "b", "parameters": {"weight": 0.3, "density": 0.2}},
            ],
            "parameters": {"lambda": 1.5, "normalize": False},
            "dtype": "bfloat16",
        }
    )


def test_flags_of_slerp_and_average() -> None:
    slerp = flags("a", "b", strategy="slerp", t=(0.0, 0.5, 1.0))
    assert slerp.base_model == "a" and slerp.parameters == {"t": [0, 0.5, 1]}
    average = flags("a", "b", "c", strategy="average")
    assert average.merge_method == "linear" and average.base_model is None
    assert [m.parameters for m in average.models] == [{"weight": 1.0}] * 3


def test_mergekits_ways_are_one_flag(tmp_path: Path) -> None:
    dare = flags("a", strategy="dare-ties", base_model="b", like_mergekit=True)
    assert dare.parameters == {"rescale_norm": "l1"}
    file = tmp_path / "m.yml"
    file.write_text(dare.model_copy(update={"parameters": {}}).to_yaml())
    assert flags(str(file), like_mergekit=True).parameters == {"rescale_norm": "l1"}
    assert flags(str(file), dtype="fp16").dtype == "float16"
    # MergeKit does with breadcrumbs as the paper says.
    assert flags("a", strategy="breadcrumbs", base_model="b", like_mergekit=True).parameters == {}
    # A flag counts more than the file, the file more than a habit.
    file.write_text(dare.to_yaml())
    assert flags(str(file), rescale_norm="density").parameters == {"rescale_norm": "density"}
    file.write_text(dare.to_yaml().replace("l1", "density"))
    assert flags(str(file), like_mergekit=True).parameters == {"rescale_norm": "density"}


def test_files_of_other_tools_are_known() -> None:
    with pytest.raises(UsageError, match=r"m\.yml: 'experts' is for mergekit-moe"):
        make_settings({"base_model": "a", "experts": []}, "m.yml")
    with pytest.raises(UsageError, match=r"m\.yml: merge_method: Field required"):
        make_settings({"base_model": "a", "models": []}, "m.yml")


def test_headings_with_nothing_under_them() -> None:
    entries = [{"model": "a", "parameters": None}, {"model": "b"}]
    empty = dict.fromkeys(("parameters", "base_model", "slices", "modules", "tokenizer_source"))
    settings = make_settings({"merge_method": "linear", "models": entries, **empty})
    assert settings == make_settings({"merge_method": "linear", "models": entries})


def test_models_written_as_mappings() -> None:
    settings = make_settings(
        {
            "merge_method": "slerp",
            "models": [
                {"model": {"model": {"path": "x/a", "revision": "v1"}}},
                {
                    "model": {
                        "model": "x/b",
                        "lora": {"path": "c"},
                    }
                },
            ],
            "base_model": {"model": {"path": "x/a", "revision": None}},
            "tokenizer_source": {"model": {"path": "x/a"}},
        }
    )
    assert settings.references() == ["x/a", "x/a@v1", "x/b+c"]
    assert settings.tokenizer_source == "x/a"


def test_parameters_of_the_only_module_go_first() -> None:
    module = {"models": LINEAR["models"], "parameters": {"weight": [{"filter": "q", "value": 1}]}}
    settings = make_settings(
        {
            "merge_method": "linear",
            "modules": {"default": module},
            "parameters": {"weight": [1, 2], "normalize": False},
        }
    )
    assert settings.parameters["normalize"] is False

    def weight(name: str) -> Any:
        return value_of(settings.parameters["weight"], name, 1, None, float)

    assert (weight("q_proj"), weight("norm")) == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no `strategy`"),
        ({"strategy": "tiez"}, "'tiez' is unknown"),
        (
            {"strategy": "linear", "weights": (1.0, 2.0, 3.0)},
            "`weights` has 3 numbers for 2",
        ),
        ({"strategy": "linear", "density": (0.5,)}, "density is no parameter"),
        ({"strategy": "slerp", "weights": (1.0, 2.0)}, "weight is no parameter"),
        ({"strategy": "ties", "base_model": "c", "parameter": ("gama=1",)}, "gama is no param"),
        ({"strategy": "ties", "base_model": "c", "parameter": ("gamma",)}, "expected key=value"),
        ({"strategy": "dare-ties", "base_model": "c", "rescale_norm": "l2"}, "`rescale_norm` l2"),
        ({"strategy": "linear", "dtype": "int4"}, "dtype"),
    ],
)
def test_flags_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        flags("a", "b", **options)


def test_a_file_and_flags_that_contradict_it(tmp_path: Path) -> None:
    file = tmp_path / "m.yml"
    file.write_text(make_settings(LINEAR).to_yaml())
    with pytest.raises(UsageError, match="says how to merge"):
        flags(str(file), strategy="ties")
