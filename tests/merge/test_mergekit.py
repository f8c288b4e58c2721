"""Merges compared with MergeKit's on the same models and YAML.

MergeKit pins its own versions of many packages, so its results for the cases of mergekit_cases.py
lie in data/mergekit.safetensors (MergeKit 0.1.5, fp32). With APR_MERGEKIT_PYTHON naming a Python
that has MergeKit, the slow tests run it afresh and compare these too.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from apr.merge.merge import prepare, run_merge
from apr.merge.recipe import make_settings, read_settings
from merge.mergekit_cases import CASES
from merge.tiny_models import tiny_weights, uniforms, write_models

GOLDEN = Path(__file__).parent / "data" / "mergekit.safetensors"
# Both compute in fp32 on weights of size 1, in different orders.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, tiny_weights())
    return folder


def ours(folder: Path, case: str, out: Path, **changes: str) -> dict[str, torch.Tensor]:
    """The case read from a YAML file in MergeKit's format, merged by `apr`."""
    settings, extra = CASES[case]
    settings = {**settings, **changes}
    if extra:
        settings["parameters"] = {**settings.get("parameters", {}), **extra}
    file = out.with_suffix(".yml")
    file.write_text(yaml.safe_dump(settings))
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_merge(prepare(read_settings(file)), out, progress=False)
    finally:
        os.chdir(before)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_equals_mergekit(case: str, models: Path, tmp_path: Path) -> None:
    golden = load_file(GOLDEN)
    theirs = {k.partition("/")[2]: v for k, v in golden.items() if k.startswith(f"{case}/")}
    merged = ours(models, case, tmp_path / case)
    assert merged.keys() == theirs.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, theirs[name], **TOLERANCE)


def run_mergekit(folder: Path, *dtypes: str) -> None:
    python = os.environ.get("APR_MERGEKIT_PYTHON")
    if not python:
        pytest.skip("APR_MERGEKIT_PYTHON names no Python with MergeKit")
    save_file(uniforms(), folder / "uniforms.safetensors")
    script = Path(__file__).parent / "run_mergekit.py"
    subprocess.run([python, str(script), str(folder), *dtypes], check=True, capture_output=True)


@pytest.mark.slow
def test_the_stored_results_are_mergekits(tmp_path: Path) -> None:
    write_models(tmp_path, tiny_weights())
    run_mergekit(tmp_path)
    golden = load_file(GOLDEN)
    for case in CASES:
        for name, tensor in load_file(tmp_path / case / "model.safetensors").items():
            torch.testing.assert_close(golden[f"{case}/{name}"], tensor, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_bf16_models_equal_mergekit_to_one_ulp(tmp_path: Path) -> None:
    """Stored in bf16, computed in fp32, written in bf16. A bf16 delta has many equal magnitudes,
    of which TIES and breadcrumbs keep some; which, MergeKit leaves to an unstable sort, so there
    elements may differ whose magnitude is that of the threshold.
    """
    weights = {m: {k: v.bfloat16() for k, v in t.items()} for m, t in tiny_weights().items()}
    write_models(tmp_path, weights)
    run_mergekit(tmp_path, "float32", "bfloat16")
    for case in CASES:
        merged = ours(tmp_path, case, tmp_path / f"ours-{case}", out_dtype="bfloat16")
        equal_sizes = at_threshold(tmp_path, case)
        for name, theirs in load_file(tmp_path / case / "model.safetensors").items():
            steps = merged[name].view(torch.int16).int() - theirs.view(torch.int16).int()
            differs = steps.abs() > 1
            if name in equal_sizes:
                differs &= ~equal_sizes[name]
            assert not differs.any(), (case, name)


def at_threshold(folder: Path, case: str) -> dict[str, torch.Tensor]:
    """Where a delta's magnitude is one of those at which its selection by magnitude begins or
    ends, by tensor name; empty for methods that select otherwise.
    """
    settings = make_settings(CASES[case][0])
    if not settings.merge_method.startswith(("ties", "breadcrumbs")):
        return {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        plan = prepare(settings).plan
        found = {}
        for output in plan.outputs:
            base = plan.inputs[output.base.model].tensor(output.base.name).float()
            mask = torch.zeros(output.shape, dtype=torch.bool)
            for m, source in enumerate(output.models):
                size = (plan.inputs[source.model].tensor(source.name).float() - base).abs()
                ordered = size.flatten().sort(descending=True).values
                top = int(output.parameters.get("gamma", [0] * 9)[m] * len(ordered))
                last = top + max(1, int(output.parameters["density"][m] * len(ordered)))
                for rank in (top - 1, top, last - 1, last):
                    mask |= size == ordered[min(max(rank, 0), len(ordered) - 1)]
            found[output.name] = mask
        return found
    finally:
        os.chdir(before)


def test_equal_models_merge_to_themselves(models: Path, tmp_path: Path) -> None:
    entries = [{"model": str(models / "a"), "parameters": {"weight": w}} for w in (0.7, 0.3)]
    copy = tmp_path / "copy"
    copy.symlink_to(models / "a")
    entries[1]["model"] = str(copy)
    settings = make_settings({"merge_method": "linear", "models": entries})
    run_merge(prepare(settings), tmp_path / "out", progress=False)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(models / "a" / "model.safetensors").items():
        assert torch.equal(merged[name], tensor)
