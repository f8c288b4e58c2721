"""Masks and weights compared with the papers' own code on the same weights and activations.

Its results lie in data/authors.safetensors (locuslab/wanda, IST-DASLab/sparsegpt, luuyin/OWL,
fp32). With APR_PRUNING_AUTHORS naming a folder of their checkouts (see run_authors.py), a slow test
runs them afresh.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apr.calibrate.statistics import Norms, Statistic
from apr.prune.masks import wanda_scores
from apr.prune.matrices import outlier_ratio, owl_sparsities
from apr.prune.prune_methods import METHODS, STATISTICS, wanda_pruned
from apr.prune.prune_settings import Pattern
from prune import authors_cases as cases

GOLDEN = Path(__file__).parent / "data" / "authors.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def observed(statistic: Statistic) -> Statistic:
    for sequence in cases.inputs():
        statistic.add(sequence)
    return statistic


def pruned(name: str, amount: str) -> torch.Tensor:
    sparsity, pattern = cases.AMOUNTS[amount]
    form = Pattern(pattern[1] - pattern[0], pattern[1]) if pattern else None
    method = METHODS[name]
    assert method.matrices is not None
    statistic = observed(STATISTICS[method.asks](cases.COLUMNS, CPU))
    options = {key: option.default for key, option in method.options.items()}
    return method.matrices({"w": cases.weight()}, statistic, sparsity, form, **options).weights["w"]


@pytest.mark.parametrize("amount", cases.AMOUNTS)
def test_wanda_takes_the_same_weights(amount: str, golden: dict[str, torch.Tensor]) -> None:
    ours = pruned("wanda", amount)
    taken = golden[f"wanda/{amount}"]
    assert torch.equal(ours == 0, taken)
    assert torch.equal(ours, cases.weight().masked_fill(taken, 0))


@pytest.mark.parametrize("amount", cases.AMOUNTS)
def test_surgeon_gives_the_same_weights(amount: str, golden: dict[str, torch.Tensor]) -> None:
    ours, theirs = pruned("sparsegpt", amount), golden[f"sparsegpt/{amount}"]
    assert torch.equal(ours == 0, theirs == 0)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_owl_gives_layers_the_same_sparsity(golden: dict[str, torch.Tensor]) -> None:
    norms = observed(Norms(cases.COLUMNS, CPU)).norms()
    weights = cases.owl_weights()
    outliers = [outlier_ratio([wanda_scores(w, norms)], cases.OWL_OUTLIER) for w in weights]
    assert min(outliers) < max(outliers)
    sizes = [w.numel() for w in weights]
    found = owl_sparsities(outliers, sizes, 0.5, cases.OWL_SPREAD)
    for i, (weight, sparsity) in enumerate(zip(weights, found, strict=True)):
        assert torch.equal(wanda_pruned(weight, norms, sparsity, None) == 0, golden[f"owl/{i}"])


@pytest.mark.slow
def test_the_stored_results_are_the_authors(
    tmp_path: Path, golden: dict[str, torch.Tensor]
) -> None:
    folder = os.environ.get("APR_PRUNING_AUTHORS")
    if not folder:
        pytest.skip("APR_PRUNING_AUTHORS names no folder with checkouts wanda, sparsegpt and owl")
    out = tmp_path / "out.safetensors"
    script = Path(__file__).parent / "run_authors.py"
    subprocess.run([sys.executable, script, folder, out], check=True, capture_output=True)
    again = load_file(out)
    assert again.keys() == golden.keys()
    for name, tensor in again.items():
        torch.testing.assert_close(tensor, golden[name], rtol=0, atol=1e-5)
