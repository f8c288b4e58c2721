"""Run the code of Wanda, SparseGPT and OWL on the layers of authors_cases.py.

    python run_authors.py FOLDER OUT.safetensors

FOLDER holds git checkouts `wanda` (github.com/locuslab/wanda), `sparsegpt`
(github.com/IST-DASLab/sparsegpt) and `owl` (github.com/luuyin/OWL). Their functions run as they
are; what they fetch (calibration data) and a GPU's calls are replaced.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import authors_cases as cases


class Block(nn.Module):
    """A layer of one matrix that hands its input on, so that every layer sees the same."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.matrix = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.matrix.weight.data = weight.clone()

    def forward(self, x: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        self.matrix(x)
        return (x,)


def fake_model(weights: list[torch.Tensor]) -> Any:
    layers = nn.ModuleList(map(Block, weights))
    return SimpleNamespace(
        config=SimpleNamespace(use_cache=False),
        model=SimpleNamespace(layers=layers),
        hf_device_map={},
        seqlen=cases.TOKENS,
    )


def package(folder: Path, module: str) -> ModuleType:
    """A module of a checkout's package `lib`; each checkout has its own."""
    for name in [name for name in sys.modules if name.split(".")[0] == "lib"]:
        del sys.modules[name]
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        return importlib.import_module(f"lib.{module}")


def given_inputs(module: ModuleType) -> None:
    """Calibration is the inputs of the cases."""
    module.get_loaders = lambda *_, **__: (None, None)

    def prepared(*_: Any) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x = cases.inputs()
        return x, torch.zeros_like(x), None, None

    module.prepare_calibration_input = prepared


def arguments(sparsity: float) -> SimpleNamespace:
    return SimpleNamespace(
        nsamples=cases.SEQUENCES,
        seed=0,
        sparsity_ratio=sparsity,
        use_variant=False,
        model="llama",
        Lamda=cases.OWL_SPREAD,
        Hyper_m=cases.OWL_OUTLIER,
    )


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    sys.modules["datasets"] = mock.MagicMock()
    torch.cuda.synchronize = lambda *_: None
    cpu = torch.device("cpu")

    wanda = package(folder / "wanda", "prune")
    given_inputs(wanda)
    for name, (sparsity, pattern) in cases.AMOUNTS.items():
        model = fake_model([cases.weight()])
        zeros, group = pattern or (0, 0)
        wanda.prune_wanda(arguments(sparsity), model, None, cpu, zeros, group)
        found[f"wanda/{name}"] = model.model.layers[0].matrix.weight.data == 0

    with mock.patch.object(sys, "path", [str(folder / "sparsegpt"), *sys.path]):
        sparsegpt = importlib.import_module("sparsegpt")
    for name, (sparsity, pattern) in cases.AMOUNTS.items():
        layer = Block(cases.weight()).matrix
        pruner = sparsegpt.SparseGPT(layer)
        for sequence in cases.inputs():
            pruner.add_batch(sequence[None], None)
        zeros, group = pattern or (0, 0)
        pruner.fasterprune(sparsity, prunen=zeros, prunem=group)
        found[f"sparsegpt/{name}"] = layer.weight.data

    owl = package(folder / "owl", "prune_all")
    given_inputs(owl)
    model = fake_model(cases.owl_weights())
    owl.prune_wanda_outlier(arguments(0.5), model, None, cpu)
    for i, layer in enumerate(model.model.layers):
        found[f"owl/{i}"] = layer.matrix.weight.data == 0

    save_file({k: v.contiguous() for k, v in found.items()}, sys.argv[2])


if __name__ == "__main__":
    main()
