"""Several adapters in one run: each learns what it would learn alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apr.checkpoint.safetensors_folder import SafetensorsSource
from apr.common.errors import UsageError
from apr.model.transformer import Linear
from apr.train.adapters_config import read_adapters
from apr.train.finetune import finetune
from apr.train.lora import LoraLinear, LoraSettings
from apr.train.prepare import Prepared, prepare
from apr.train.request import FinetuneRequest
from apr.train.settings import TrainSettings
from apr.train.several import finetune_several
from apr.train.shared_base import SharedLinear, Spans

from .tiny import questions, write_model, write_rows

CONFIG = """
adapters:
  - name: plain
    data: {folder}/many.jsonl
  - name: wide
    data: [{folder}/few.jsonl]
    targets: all-linear
    rank: 3
    lora_alpha: 5
    rslora: true
    lr: 0.02
    seed: 7
  - {{name: one, targets: ["*.layers.1.mlp.*"]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    write_model(folder / "tiny")
    write_rows(folder / "many.jsonl", questions(40))
    write_rows(folder / "few.jsonl", [{"text": f"x{i} = {i * i}"} for i in range(60)])
    (folder / "adapters.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def prepared(folder: Path, **settings: Any) -> dict[str, Prepared]:
    train = TrainSettings(learning_rate=1e-2, batch_size=2, warmup=0.2, max_grad_norm=0.5)
    request = FinetuneRequest(
        model=str(folder / "tiny"),
        data=(str(folder / "few.jsonl"),),
        lora=LoraSettings(rank=4, alpha=8.0),
        train=replace(train, **settings),
        dtype="fp32",
        max_length=160,
        eval_split=0.2,
    )
    requests = read_adapters(folder / "adapters.yaml", request)
    return {name: prepare(one, progress=False) for name, one in requests.items()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    source = SafetensorsSource.from_file(folder / "adapter_model.safetensors")
    return {name: source.get(name).clone() for name in source.names()}


def lines(folder: Path, key: str) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row[key] for row in rows if key in row]


def test_each_is_what_it_is_alone(folder: Path, tmp_path: Path) -> None:
    """Losses, held-out losses and the trained factors; fp32, where only the order of sums differs.

    Ranks, targets, rates, seeds, data and numbers of steps are different ones.
    """
    together = prepared(folder, epochs=2)
    result = finetune_several(together, tmp_path / "all")
    assert result["best_epoch"] == 2
    steps = {}
    for name, one in together.items():
        finetune(one, tmp_path / name)
        losses = lines(tmp_path / name, "loss")
        steps[name] = len(losses)
        close = {"rel": 2e-5, "abs": 0}
        assert lines(tmp_path / "all", f"loss.{name}") == pytest.approx(losses, **close)
        evals = lines(tmp_path / name, "eval_loss")
        assert lines(tmp_path / "all", f"eval_loss.{name}") == pytest.approx(evals, **close)
        assert losses[-1] < losses[0]
        for part in ("last", "."):
            wanted = tensors(tmp_path / name / part)
            found = tensors(tmp_path / "all" / part / name)
            assert found.keys() == wanted.keys()
            for key, tensor in wanted.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=2e-5)
        configs = [
            json.loads((tmp_path / path / "adapter_config.json").read_text())
            for path in (name, f"all/{name}")
        ]
        assert configs[0] == configs[1]
    assert len(set(steps.values())) > 1 and result["steps"] == max(steps.values())


def test_a_stopped_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """Bit by bit, also across the moment where one has no batch left in its epoch."""
    options = {"max_steps": 9, "save_every": 2}
    finetune_several(prepared(folder, **options), tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise Stop

    with pytest.raises(Stop):
        finetune_several(prepared(folder, **options), tmp_path / "parts", on_log=stop)
    finetune_several(prepared(folder, **options), tmp_path / "parts")
    for key in ("loss", "loss.wide", "eval_loss"):
        assert lines(tmp_path / "parts", key) == lines(tmp_path / "whole", key)
    for name in ("plain", "wide", "one"):
        whole, parts = tensors(tmp_path / "whole" / name), tensors(tmp_path / "parts" / name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("adapters: 3", "has no list of adapters"),
        ("a: [", "is not YAML"),
        ("adapters: [{name: a, rnk: 3}]", "adapter 1 has an unknown field rnk"),
        ("adapters: [{name: a, rank: four}]", "adapter 1: rank is 'four'"),
        ("adapters: [{name: a, rank: true}]", "adapter 1: rank is True"),
        ("adapters: [{name: a, rank: 0}]", "adapter 1: --rank is 0"),
        ("adapters: [{name: a}, {name: a}]", "adapter 2: the name 'a' cannot be used"),
        ("adapters: [{name: best}]", "the name 'best' cannot be used"),
        ("adapters: [{rank: 3}]", "the name '' cannot be used"),
        ("adapters: [{name: a, data: [1]}]", r"adapter 1: data is \[1\]"),
        ("adapters: [{name: a, targets: lm_head}]", "lm_head cannot be shared"),
        ("adapters: [7]", "adapter 1 is no mapping"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "adapters.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_adapters(path, FinetuneRequest("model", ("rows.jsonl",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "full"}, "--method full does not go"),
        ({"lora": LoraSettings(dora=True)}, "--dora does not go"),
        ({"lora": LoraSettings(dropout=0.1)}, "--lora-dropout does not go"),
        ({"train": TrainSettings(accumulate=2)}, "--accumulate does not go"),
        ({"data": ()}, "adapter 1: no training data"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, changes: Any, message: str) -> None:
    path = tmp_path / "adapters.yaml"
    path.write_text("adapters: [{name: a}]")
    request = replace(FinetuneRequest("model", ("rows.jsonl",)), **changes)
    with pytest.raises(UsageError, match=message):
        read_adapters(path, request)


def test_an_adapter_rounds_as_it_does_alone() -> None:
    """In bf16 as well, rows of a batch that adapters share are those of each adapter alone. (A
    library may add up fewer rows in another order: seldom another last bit.)
    """
    torch.manual_seed(0)
    base = Linear(256, 512, bias=False).to(torch.bfloat16).requires_grad_(False)
    shared = SharedLinear(base, Spans((("one", 0, 40), ("none", 40, 50), ("two", 50, 100))))
    for name in ("one", "two"):
        shared.adapters[name] = alone = LoraLinear(base, rank=8, scaling=2.0)
        for factor in (alone.lora_a, alone.lora_b):
            torch.nn.init.normal_(factor)
    x = torch.randn(100, 256, dtype=torch.bfloat16)
    one, two = shared.adapters["one"], shared.adapters["two"]
    expected = torch.cat([one(x[:40]), base(x[40:50]), two(x[50:])])
    assert (shared(x) != expected).float().mean() < 0.01
