"""What `apr merge-report` counts, against numpy, and what it must show of merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from apr.common.errors import AprError, UsageError
from apr.merge.diagnostics import MergeDiagnosis, diagnose, plot
from apr.merge.merge import prepare, run_merge
from apr.merge.recipe import make_settings
from merge.tiny_models import tiny_weights, write_models


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    weights = tiny_weights()
    for name in ("a", "b"):  # some elements that did not change
        for key, tensor in weights[name].items():
            same = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < 0.3
            weights[name][key] = torch.where(same, weights["base"][key], tensor)
    write_models(folder, weights)
    monkeypatch.chdir(folder)
    return folder


def found(*models: str, **more: Any) -> MergeDiagnosis:
    return diagnose(models, "base", progress=False, **more)


def flat(name: str, part: str = "") -> np.ndarray:
    from safetensors.numpy import load_file

    tensors = load_file(f"{name}/model.safetensors")
    kept = [tensor.ravel() for key, tensor in sorted(tensors.items()) if part in key]
    return np.concatenate(kept).astype(np.float64)


@pytest.mark.parametrize(
    ("group", "part"),
    [("layer 1", "layers.1."), ("embeddings", "embed"), ("mlp", "mlp"), ("attention", "attn"),
     ("all", "")],
)  # fmt: skip
def test_the_numbers_are_numpys(models: Path, group: str, part: str) -> None:
    diagnosis = found("a", "b", "c")
    row = next(g for g in diagnosis.groups if g.name == group)
    base = flat("base", part)
    deltas = [flat(name, part).astype(np.float32) - base.astype(np.float32) for name in "abc"]
    assert row.parameters == len(base)
    for m, d in enumerate(deltas):
        assert row.change[m] == pytest.approx(np.linalg.norm(d) / np.linalg.norm(base), rel=1e-5)
        assert row.zeros[m] == pytest.approx((d == 0).mean())
    for p, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        x, y = deltas[i].astype(np.float64), deltas[j].astype(np.float64)
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert row.cosines[p] == pytest.approx(cosine, abs=1e-6)
        against = x * y < 0
        assert row.conflicts[p] == pytest.approx(against.mean())
        size = np.minimum(abs(x), abs(y))
        assert row.weighted[p] == pytest.approx(size[against].sum() / size.sum(), rel=1e-5)


def merged(name: str, settings: dict[str, Any]) -> None:
    run_merge(prepare(make_settings(settings)), name, progress=False)


def test_ties_leaves_fewer_conflicts_than_the_sum(models: Path) -> None:
    """A merged delta and each input's, in the same direction or not."""
    entries = [{"model": m, "parameters": {"weight": 1}} for m in ("a", "b", "c")]
    merged("sum", {"merge_method": "task_arithmetic", "base_model": "base", "models": entries})
    ties = {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.3}}
    merged("ties", {**ties, "models": entries})
    conflicts = {}
    for name in ("sum", "ties"):
        whole = found("a", "b", "c", merged=name).whole
        conflicts[name] = [whole.conflicts[p] for p in (2, 4, 5)]  # pairs with the merged one
    assert all(t < s for t, s in zip(conflicts["ties"], conflicts["sum"], strict=True))


def test_slerp_keeps_norms(models: Path) -> None:
    merged(
        "slerp",
        {
            "merge_method": "slerp",
            "base_model": "a",
            "models": [{"model": "far"}],
            "parameters": {"t": 0.5},
        },
    )
    for part in ("layers.0.", "layers.1.", "embed", "lm_head"):
        ends = (np.linalg.norm(flat("a", part)) + np.linalg.norm(flat("far", part))) / 2
        assert abs(np.linalg.norm(flat("slerp", part)) / ends - 1) < 0.05


def test_verdicts(models: Path) -> None:
    assert "cancels" in found("a", "c").verdict()
    assert "agree" in found("a", "a").verdict()
    assert "nothing to compare" in found("a").verdict()
    assert "base changed nothing in base" in found("a", "base").verdict()
    weights = tiny_weights()
    opposite = {k: 2 * weights["base"][k] - v for k, v in weights["c"].items()}
    write_models(models / "more", {"opposite": opposite})
    assert "undo each other" in found("c", "more/opposite").verdict()
    only = {k: v.clone() for k, v in weights["base"].items()}
    only["lm_head.weight"] += 1
    write_models(models / "other", {"head": only})
    rest = {**weights["c"], "lm_head.weight": weights["base"]["lm_head.weight"]}
    write_models(models / "others", {"rest": rest})
    assert "different things" in found("other/head", "others/rest").verdict()


def test_models_that_cannot_be_compared(models: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        found()
    tensors = {k: v for k, v in tiny_weights()["b"].items() if k != "model.norm.weight"}
    save_file(tensors, models / "b" / "model.safetensors")
    with pytest.raises(AprError, match=r"b: tensor model\.norm\.weight is missing"):
        found("a", "b")
    tensors["model.norm.weight"] = torch.ones(9)
    save_file(tensors, models / "b" / "model.safetensors")
    with pytest.raises(AprError, match=r"\(9,\) in b and \(8,\) in base"):
        found("a", "b")


def test_the_picture(models: Path) -> None:
    pytest.importorskip("matplotlib")
    diagnosis = found("a", "b", "c")
    plot(diagnosis, "report.png")
    assert (models / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"`plot` report\.doc"):
        plot(diagnosis, "report.doc")
