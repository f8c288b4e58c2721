"""Whole models pruned, compared with what transformers computes of the folders written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.calibrate.statistics import Hessian
from apr.common.errors import AprError, UsageError
from apr.prune.prune_methods import magnitude_pruned, prune_sparsegpt, wanda_pruned
from apr.prune.prune_run import PreparedPrune, PruneReport, prepare, run_prune
from apr.prune.prune_settings import PruneSettings, parse_layers, parse_pattern
from apr.prune.surgeon import DAMPING

from .conftest import inputs_of, load_hf

Small = Callable[[str], Path]
FAMILIES = ("Llama", "Qwen2", "Gemma3", "Phi3")


def prepared(model: Path, text: Path, method: str, **changes: Any) -> PreparedPrune:
    amount = {"pattern": None, "calibration": (str(text),)}
    amount["sparsity"] = None if changes.get("pattern") else 0.5
    more = {"sequences": 8, "sequence_length": 32, "dtype": "float32"}
    values = {**amount, **more, **changes}
    if isinstance(values["pattern"], str):
        values["pattern"] = parse_pattern(values["pattern"])
    settings = PruneSettings(str(model), method, **values)
    return prepare(settings, progress=False)


def pruned(at: PreparedPrune, out: Path) -> tuple[PruneReport, dict[str, torch.Tensor]]:
    report = run_prune(at, out, progress=False)
    return report, load_file(out / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_wanda_sees_what_the_pruned_model_computes(
    family: str, pattern: str | None, small: Small, text: Path, tmp_path: Path
) -> None:
    """The inputs by which a matrix was pruned are those it has in the pruned model: all before it
    was pruned already.
    """
    at = prepared(small(family), text, "wanda", pattern=pattern, sparsity=None if pattern else 0.4)
    report, _ = pruned(at, tmp_path / "out")
    before, model = load_hf(small(family)).state_dict(), load_hf(tmp_path / "out")
    assert at.calibration is not None
    inputs, form = inputs_of(model, at.calibration.ids), parse_pattern(pattern) if pattern else None
    after, different, total = model.state_dict(), 0, 0
    assert set(inputs) == set(at.matrices())
    for name, x in inputs.items():
        expected = wanda_pruned(before[name], x.norm(dim=0), at.settings.part, form)
        different += int((after[name] != expected).sum())
        total += expected.numel()
    assert different <= 1e-4 * total
    others = [name for name in before if name not in inputs]
    assert others and all(torch.equal(before[name], after[name]) for name in others)
    zeros = sum(int((after[name] == 0).sum()) for name in inputs)
    assert report.sparsity == pytest.approx(zeros / total)
    assert report.sparsity == pytest.approx(at.settings.part, abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_surgeon_sees_what_the_pruned_model_computes(
    family: str, small: Small, text: Path, tmp_path: Path
) -> None:
    at = prepared(small(family), text, "sparsegpt")
    _, after = pruned(at, tmp_path / "out")
    before, model = load_hf(small(family)).state_dict(), load_hf(tmp_path / "out")
    assert at.calibration is not None
    different = total = 0
    for name, x in inputs_of(model, at.calibration.ids).items():
        statistic = Hessian(x.shape[1], torch.device("cpu"))
        statistic.add(x)
        found = prune_sparsegpt({name: before[name]}, statistic, 0.5, None, DAMPING)
        expected = found.weights[name]
        same = (after[name] == 0) == (expected == 0)
        different, total = different + int((~same).sum()), total + same.numel()
        torch.testing.assert_close(after[name][same], expected[same], rtol=1e-2, atol=1e-2)
    assert different <= 2e-3 * total  # of a few calibration tokens: nearly singular Hessians


def test_magnitude_of_layers_and_of_the_whole_model(
    small: Small, text: Path, tmp_path: Path
) -> None:
    before = load_file(small("Llama") / "model.safetensors")
    at = prepared(small("Llama"), text, "magnitude", sparsity=0.3)
    assert at.calibration is None
    _, after = pruned(at, tmp_path / "each")
    for name in at.matrices():
        assert torch.equal(after[name], magnitude_pruned(before[name], 0.3, None))
    at = prepared(small("Llama"), text, "magnitude", sparsity=0.3, allocation="global")
    report, after = pruned(at, tmp_path / "global")
    sizes = torch.cat([before[name].abs().flatten() for name in at.matrices()])
    limit = sizes.sort().values[int(0.3 * len(sizes))]
    for name in at.matrices():
        assert torch.equal(after[name], before[name].masked_fill(before[name].abs() < limit, 0))
    assert report.sparsity == pytest.approx(0.3, abs=1e-4)
    assert max(report.layers) > min(report.layers)


def test_owl_spares_layers_and_keeps_the_mean(small: Small, text: Path, tmp_path: Path) -> None:
    at = prepared(small("Llama"), text, "wanda", allocation="owl", owl_outlier=3.0)
    report, _ = pruned(at, tmp_path / "out")
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert max(report.layers) - min(report.layers) == pytest.approx(0.16, abs=0.03)


def test_a_gguf_file_becomes_a_folder(small: Small, text: Path, tmp_path: Path) -> None:
    from convert.models import gguf_file, small_model

    file = gguf_file(tmp_path / "m.gguf", small_model("Llama"))
    from_file = pruned(prepared(file, text, "wanda"), tmp_path / "a")[1]
    from_folder = pruned(prepared(small("Llama"), text, "wanda"), tmp_path / "b")[1]
    for name, tensor in from_folder.items():
        assert torch.equal(from_file[name], tensor)


def test_the_manifest_says_how(small: Small, text: Path, tmp_path: Path) -> None:
    at = prepared(small("Llama"), text, "wanda", pattern="2:4", sparsity=None)
    report, _ = pruned(at, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "apr_manifest.json").read_text())
    assert at.calibration is not None
    settings = manifest["settings"]
    assert (settings["method"], settings["pattern"], settings["sparsity"]) == ("wanda", "2:4", 0.5)
    assert settings["calibration"]["sha256_of_ids"] == at.calibration.sha256
    assert settings["layer_sparsity"] == list(report.layers) == [0.5, 0.5, 0.5]
    assert (report.input_bytes, report.shapes_kept) == (report.nbytes, True)


CHOICES = [
    ({"layers": (1,)}, [], "model.layers.1."),
    ({"ignore": ("down_proj",)}, ["down_proj"], ""),
    ({"ignore": ("layers.0", "re:.*layers.2.self_attn")}, [".0.", "2.self_attn"], ""),
    ({"layers": (0, 2), "ignore": ("mlp", "lm_head")}, ["mlp", "layers.1"], ""),
]


@pytest.mark.parametrize(("choice", "left_out", "inside"), CHOICES)
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("magnitude", {}),
        ("magnitude", {"allocation": "global"}),
        ("wanda", {}),
        ("wanda", {"allocation": "owl", "owl_spread": 0.05}),
        ("sparsegpt", {}),
    ],
)
def test_only_what_is_chosen_is_pruned(
    method: str,
    more: dict[str, Any],
    choice: dict[str, Any],
    left_out: list[str],
    inside: str,
    small: Small,
    text: Path,
    tmp_path: Path,
) -> None:
    at = prepared(small("Llama"), text, method, **choice, **more)
    report, after = pruned(at, tmp_path / "out")
    before = load_file(small("Llama") / "model.safetensors")
    meant = {
        name
        for name in before
        if name.endswith("_proj.weight") and inside in name and not any(x in name for x in left_out)
    }
    assert set(at.matrices()) == meant
    touched = {name for name in before if not torch.equal(before[name], after[name])}
    assert touched == meant
    zeros = sum(int((after[name] == 0).sum()) for name in meant)
    total = sum(before[name].numel() for name in meant)
    assert report.sparsity == pytest.approx(zeros / total) == pytest.approx(0.5, abs=0.02)
    assert len(report.layers) == 3


def test_a_matrix_that_a_pattern_does_not_divide_can_be_left_out(small: Small, text: Path) -> None:
    with pytest.raises(UsageError, match="does not divide the rows"):
        prepared(small("Llama"), text, "magnitude", pattern="2:5")
    widths = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    at = prepared(small("Llama"), text, "magnitude", pattern="3:6", ignore=("down_proj",))
    assert {name.split(".")[-2] for name in at.matrices()} == widths


def test_analysis_of_some_layers(small: Small, text: Path) -> None:
    from apr.prune.prune_effects import analyze

    at = prepared(small("Llama"), text, "wanda", layers=(1, 2), ignore=("mlp",))
    rows = analyze(at, progress=False)["layer_table"]
    assert [row["layer"] for row in rows] == [1, 2]
    assert all(set(row["errors"]) <= {f"self_attn.{x}_proj" for x in "qkvo"} for row in rows)


@pytest.mark.parametrize(
    ("text", "layers"), [("3", (3,)), ("2-4,0", (0, 2, 3, 4)), (" 1 , 1-2", (1, 2))]
)
def test_lists_of_layers(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "4-2", "-1", "a", "1-", "1,,2", "0.5"])
def test_what_is_no_list_of_layers(text: str) -> None:
    with pytest.raises(UsageError, match="is no list of layers"):
        parse_layers(text)


# Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.0}, "`sparsity` is 0"),
        ({"sparsity": 1.0}, "`sparsity` is 1"),
        ({"sparsity": -0.5}, "`sparsity` is -0.5"),
        ({"sparsity": float("nan")}, "`sparsity` is nan"),
        ({"sparsity": None}, "nothing says how much to prune"),
        ({"pattern": "2:4", "sparsity": 0.3}, "leave `sparsity` out"),
        ({"pattern": "5:7", "sparsity": None}, "`pattern` 5:7 does not divide the rows of"),
        ({"sequence_length": 4000}, "`sequence_length` 4000 is more than the 128 tokens"),
        ({"allocation": "global"}, "it is for magnitude"),
        ({"allocation": "best"}, "`allocation` best is unknown"),
        ({"owl_spread": 0.9, "allocation": "owl"}, "a smaller `owl_spread`"),
        ({"sequences": 0}, "`sequences` is 0"),
        ({"damping": -1.0}, "`damping` has no meaning with `method` wanda"),
        ({"layers": (0, 3)}, "`layers` names layer 3; the model has 3, the last is 2"),
        ({"ignore": ("q_porj",)}, "`ignore` q_porj names nothing of this model .*q_proj"),
        ({"ignore": ("proj",)}, "`ignore` proj names nothing"),
        ({"ignore": ("re:(",)}, r"`ignore` re:\( is no regular expression"),
        ({"layers": (1,), "ignore": ("layers",)}, "leave nothing to prune"),
    ],
)
def test_bad_settings(
    changes: dict[str, Any], message: str, small: Small, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run_prune(
            prepared(small("Llama"), text, "wanda", **changes), tmp_path / "o", progress=False
        )
    assert not list(tmp_path.iterdir())


def test_calibration_shorter_than_a_sequence(small: Small, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("def f():")
    with pytest.raises(UsageError, match=r"short.txt has \d tokens, one sequence has 32"):
        prepared(small("Llama"), tmp_path / "short.txt", "wanda")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_activations_that_are_not_finite(
    method: str, small: Small, text: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in small("Llama").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    at = prepared(broken, text, method)
    with pytest.raises(AprError, match=r"inputs of model.layers.1.mlp.down_proj.weight: activ"):
        run_prune(at, tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_folder_in_the_way_and_the_model_itself(small: Small, text: Path, tmp_path: Path) -> None:
    at = prepared(small("Llama"), text, "wanda")
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(UsageError, match="is not empty"):
        run_prune(at, tmp_path, progress=False)
    with pytest.raises(UsageError, match="holds the model that is to be read"):
        run_prune(at, small("Llama"), force=True, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_settings_say_what_they_are() -> None:
    settings = PruneSettings("m", "wanda", 0.5, parse_pattern("2:4"))
    assert json.loads(json.dumps(settings.to_json()))["pattern"] == "2:4"
