"""Losses, gradients and what is logged, step by step, against trl's (stored by
run_trl_preferences.py; trl 1.16.0, peft 0.21.2, fp32).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apr.align.align_settings import PreferenceSettings
from apr.align.losses import preference
from apr.align.preferences import PreferenceBatch, PreferenceData, preference_of, with_probes
from apr.align.reference import reference_logprobs
from apr.checkpoint import open_checkpoint
from apr.text import load_tokenizer
from apr.train.adapter_files import save_adapter
from apr.train.base import load_base
from apr.train.loop import METRICS, Training, train
from apr.train.lora import add_lora
from apr.train.train_settings import LoraSettings, TrainSettings
from train.tiny import write_model

pytest.importorskip("transformers")

STORED = Path(__file__).parent / "data" / "trl_preferences.json"
STEPS, BATCH, RATE = 6, 4, 1e-2
# name -> (our settings, trl's)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({"beta": 0.5}, {"trainer": "dpo", "beta": 0.5}),
    "dpo-hinge": (
        {"beta": 0.5, "loss": "hinge"},
        {"trainer": "dpo", "beta": 0.5, "loss_type": ["hinge"]},
    ),
    "dpo-ipo": (
        {"beta": 0.5, "loss": "ipo"},
        {"trainer": "dpo", "beta": 0.5, "loss_type": ["ipo"]},
    ),
    "dpo-normalized": (
        {"beta": 2.0, "length_normalized": True},
        {"trainer": "dpo", "beta": 2.0, "loss_type": ["sigmoid_norm"]},
    ),
    "dpo-sft": (
        {"beta": 0.5, "sft_weight": 0.3},
        {
            "trainer": "dpo",
            "beta": 0.5,
            "loss_type": ["sigmoid", "sft"],
            "loss_weights": [1.0, 0.3],
        },
    ),
    "orpo": ({"algorithm": "orpo", "lambda_": 0.5}, {"trainer": "orpo", "beta": 0.5}),
    "simpo": (
        {"algorithm": "simpo", "beta": 2.0, "gamma": 0.7, "label_smoothing": 0.1},
        {
            "trainer": "cpo",
            "beta": 2.0,
            "simpo_gamma": 0.7,
            "label_smoothing": 0.1,
            "loss_type": "simpo",
            "cpo_alpha": 0.0,
        },
    ),
    "kto": (
        {"algorithm": "kto", "beta": 0.5, "undesirable_weight": 1.3},
        {"trainer": "kto", "beta": 0.5, "undesirable_weight": 1.3},
    ),
}
# Ours -> trl's. Its KTO logs sums over one side's answers as means over that side.
NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "rewards_margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "log_odds": "log_odds_chosen",
    "kl": "kl",
}


def pairs() -> list[dict[str, str]]:
    """Texts of many lengths: what trl pads, differs from row to row."""
    random = np.random.default_rng(5)

    def text(least: int, most: int) -> str:
        return "".join(chr(c) for c in random.integers(97, 110, int(random.integers(least, most))))

    return [
        {
            "prompt": f"Q: {text(2, 30)}\nA:",
            "chosen": " " + text(3, 24) + "1",
            "rejected": " " + text(3, 24) + "2",
        }
        for _ in range(BATCH)
    ]


def single() -> list[dict[str, Any]]:
    """The same with one answer each, good and bad by turns."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["rejected" if i % 2 else "chosen"],
            "label": i % 2 == 0,
        }
        for i, row in enumerate(pairs())
    ]


class SameBatch:
    """One batch again and again, in the order of the rows."""

    def __init__(self, data: PreferenceData) -> None:
        self.data = data

    def batches(self, epoch: int) -> list[list[int]]:
        return [list(range(BATCH))]

    def load(self, batch: Sequence[int]) -> PreferenceBatch:
        return self.data.load(batch)


def start(folder: Path) -> Path:
    """The model and a fresh adapter, in files."""
    written = write_model(
        folder / "model", hidden_size=64, intermediate_size=48, initializer_range=0.2
    )
    model = load_base(open_checkpoint(written), "lora", torch.float32, torch.device("cpu"))
    add_lora(model, LoraSettings(rank=8, alpha=16.0, targets=("all-linear",)), seed=3)
    save_adapter(model, folder / "adapter", str(folder / "model"), {})
    return written


def our_steps(written: Path, run: Path, name: str) -> list[dict[str, float]]:
    settings = PreferenceSettings(**CASES[name][0])
    model = load_base(open_checkpoint(written), "lora", torch.float32, torch.device("cpu"))
    add_lora(model, LoraSettings(rank=8, alpha=16.0, targets=("all-linear",)), seed=3)
    tokenizer, unpaired = load_tokenizer(written), settings.algorithm == "kto"
    rows = [
        preference_of(row, tokenizer, unpaired=True) for row in (single if unpaired else pairs)()
    ]
    data = PreferenceData(
        with_probes(rows) if unpaired else rows, BATCH, 0, settings.nll_over == "sequence", unpaired
    )
    if settings.uses_reference:
        known = reference_logprobs(data, {"case": str(written)}, lambda: model)
        data = replace(data, reference=known)
    training = Training(
        model=model,
        parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
        objective=preference(settings),
        data=SameBatch(data),
        save=lambda folder: None,
        nats=False,
    )
    how = TrainSettings(
        learning_rate=RATE, schedule="linear", warmup=0, save_every=None, max_steps=STEPS
    )
    train(training, how, run)
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


def check(name: str, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs) == STEPS
    assert theirs[-1]["loss"] < theirs[0]["loss"]  # something was learned
    sides = BATCH / 2 if name == "kto" else BATCH
    for step, (here, there) in enumerate(zip(ours, theirs, strict=True)):
        for key, other in NAMES.items():
            if key not in here or other not in there:
                continue
            value = here[key]
            if name == "kto" and key in ("rewards_chosen", "rewards_rejected"):
                value *= BATCH / sides
            # fp32 in other orders of summation; steps of Adam let that grow.
            close = 1e-5 * max(1.0, abs(there[other])) * (1 if step == 0 else 100)
            assert value == pytest.approx(there[other], abs=close), (name, step, key)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(tmp_path_factory.mktemp("trl"))


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_trls(
    name: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    check(name, our_steps(written, tmp_path / "run", name), json.loads(STORED.read_text())[name])


@pytest.mark.slow
def test_trl_still_logs_this(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = os.environ.get("APR_TRL_PYTHON")
    if not python:
        pytest.skip("APR_TRL_PYTHON names no Python with trl, peft and transformers")
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    given = {
        "model": str(written),
        "adapter": str(written.parent / "adapter"),
        "rows": {"pairs": pairs(), "single": single()},
        "learning_rate": RATE,
        "batch_size": BATCH,
        "steps": STEPS,
        "cases": {name: theirs for name, (_, theirs) in CASES.items()},
    }
    (tmp_path / "cases.json").write_text(json.dumps(given))
    script = Path(__file__).parent / "run_trl_preferences.py"
    out = tmp_path / "out.json"
    subprocess.run([python, script, tmp_path / "cases.json", out], check=True, capture_output=True)
    found = json.loads(out.read_text())
    if os.environ.get("APR_STORE"):
        STORED.write_text(out.read_text())
    for name in CASES:
        check(name, our_steps(written, tmp_path / name, name), found[name])
