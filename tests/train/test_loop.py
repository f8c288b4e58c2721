"""The loop: schedules, the optimizer, exact resume, and stopping where a run goes wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from apr.common.errors import AprError, UsageError
from apr.train import loop
from apr.train.finetune import where_it_goes_on
from apr.train.loop import BAD_BATCH, METRICS, Training, TrainReport, total_steps, train
from apr.train.optimizer import Optimizer
from apr.train.run_folder import open_run
from apr.train.train_settings import TrainSettings

transformers = pytest.importorskip("transformers")


@dataclass(frozen=True)
class Numbers:
    """A batch of targets for one weight vector."""

    values: torch.Tensor

    @property
    def weight(self) -> int:
        return len(self.values)

    @property
    def tokens(self) -> int:
        return len(self.values)

    def to_json(self) -> dict[str, Any]:
        return {"values": self.values.tolist()}


class NumberData:
    def batches(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[i : i + 2] for i in range(0, 12, 2)]

    def load(self, batch: Sequence[int]) -> Numbers:
        return Numbers(torch.tensor(batch, dtype=torch.float32))


class OneBatch(NumberData):
    def batches(self, epoch: int) -> list[list[int]]:
        return [[0, 1, 2]]


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))


def squared(model: Any, batch: Numbers) -> tuple[torch.Tensor, dict[str, float]]:
    """With dropout, so that a run depends on the random numbers it draws."""
    kept = nn.functional.dropout(model.w, 0.3)
    loss = (kept.sum() - batch.values / 12).square().sum()
    return loss, {"largest": float(batch.values.max())}


def run(
    folder: Path, settings: TrainSettings, step: Any = squared, evaluate: Any = None
) -> TrainReport:
    """evaluate: the mean loss on held-out data, of the model."""
    model = Weight()

    def save(target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        (target / "w.json").write_text(json.dumps(model.w.tolist()))

    folder.mkdir(parents=True, exist_ok=True)

    def objective(model: Any, batch: Numbers) -> tuple[torch.Tensor, dict[str, float]]:
        if model.training:
            return step(model, batch)
        assert not torch.is_grad_enabled()
        return torch.tensor(evaluate(model)) * batch.weight, {"rows": 2.0 * batch.weight}

    training = Training(
        model=model,  # type: ignore[arg-type]
        parameters=dict(model.named_parameters()),
        objective=objective,
        data=NumberData(),
        save=save,
        held_out=evaluate and OneBatch(),
    )
    return train(training, settings, folder)


SETTINGS = TrainSettings(learning_rate=0.1, epochs=3, save_every=1, seed=7)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(schedule: str) -> None:
    """After the warm-up; ours reaches the peak at its last step, theirs at the step after it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=30)
    settings = TrainSettings(schedule=schedule, warmup=4)  # type: ignore[arg-type]
    for step in range(30):
        ours = settings.rate_factor(step, 30)
        if step >= 4:
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        else:
            assert ours == pytest.approx((step + 1) / 4)
        optimizer.step()
        theirs.step()
    assert TrainSettings(warmup=0.1).warmup_steps(25) == 3


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"learning_rate": float("inf")}, "`learning_rate`"),
        ({"epochs": 0}, "`epochs`"),
        ({"accumulate": 0}, "`accumulate`"),
        ({"warmup": -1.0}, "`warmup`"),
        ({"schedule": "step"}, "`schedule`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        TrainSettings(**changes)


def test_narrow_parameters_learn_as_fp32_ones_do() -> None:
    """Steps far below a bf16 parameter's rounding add up, as torch's AdamW adds them in fp32."""
    torch.manual_seed(0)
    start, slopes = torch.randn(20, 3).bfloat16(), torch.randn(200, 20, 3).bfloat16()
    narrow = nn.Parameter(start.clone())
    settings = TrainSettings(learning_rate=1e-5, weight_decay=0.1, max_grad_norm=0)
    optimizer = Optimizer({"w": narrow}, settings)
    wide = nn.Parameter(start.float())
    adam = torch.optim.AdamW([wide], lr=1e-5, weight_decay=0.1, eps=1e-8)
    for slope in slopes:
        (narrow * slope).sum().backward()
        optimizer.step(1e-5)
        wide.grad = slope.float()
        adam.step()
    assert torch.equal(narrow, wide.bfloat16()) and not torch.equal(narrow, start)
    torch.testing.assert_close(optimizer.state()["value.w"], wide.detach())


def test_clipping_lora_plus_and_decay() -> None:
    a, b, bias = (nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2, 2), (2,)))
    settings = TrainSettings(lora_plus=16.0, weight_decay=0.5, max_grad_norm=1.0)
    optimizer = Optimizer({"x.lora_a": a, "x.lora_b": b, "x.bias": bias}, settings)
    for parameter in (a, b, bias):
        parameter.grad = torch.full_like(parameter, 3.0)
    assert optimizer.step(0.01) == pytest.approx(3 * 10**0.5)
    # Adam's first step has length rate whatever the gradient; decay shrinks matrices first.
    assert a[0, 0].item() == pytest.approx(1 - 0.01 * 0.5 - 0.01, abs=1e-5)
    assert b[0, 0].item() == pytest.approx(1 - 0.16 * 0.5 - 0.16, abs=1e-5)
    assert bias[0].item() == pytest.approx(1 - 0.01, abs=1e-5)
    moments = optimizer.state()["exp_avg.x.lora_a"]
    assert moments[0, 0].item() == pytest.approx(0.1 * 3 / (3 * 10**0.5), rel=1e-4)


def test_accumulating_equals_one_large_batch(tmp_path: Path) -> None:
    def plain(model: Any, batch: Numbers) -> tuple[torch.Tensor, dict[str, float]]:
        return (model.w.sum() - batch.values / 12).square().sum(), {}

    class Large(NumberData):
        def batches(self, epoch: int) -> list[list[int]]:
            small = super().batches(epoch)
            return [small[i] + small[i + 1] for i in (0, 2, 4)]

    settings = TrainSettings(learning_rate=0.1, accumulate=2)
    small = run(tmp_path / "small", settings, plain)
    model = Weight()
    training = Training(model, {"w": model.w}, plain, Large(), save=lambda folder: None)  # type: ignore[arg-type]
    large = train(training, replace(settings, accumulate=1), tmp_path / "small" / "again")
    assert small.steps == large.steps == 3 == total_steps(NumberData(), settings)
    assert small.losses == pytest.approx(large.losses, rel=1e-6)


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """Stopped after every single step: losses, rates and gradient norms are the same bits."""
    whole = run(tmp_path / "whole", SETTINGS)

    class Stop(Exception):
        pass

    calls = 0

    def stopping(model: Any, batch: Numbers) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise Stop
        return squared(model, batch)

    for _ in range(30):
        try:
            parts = run(tmp_path / "parts", SETTINGS, stopping)
            break
        except Stop:
            continue
    assert parts.losses == whole.losses and parts.steps == 18

    def lines(name: str) -> list[dict[str, Any]]:
        found = map(json.loads, (tmp_path / name / METRICS).read_text().splitlines())
        return [{k: v for k, v in line.items() if k != "seconds"} for line in found]

    assert lines("parts") == lines("whole")
    assert (tmp_path / "parts/last/w.json").read_text() == (
        tmp_path / "whole/last/w.json"
    ).read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", [*range(1, 24, 3), 22])
def test_a_signal_ends_a_run_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, when: int
) -> None:
    """In any step or evaluation, with no other checkpoint: what was done is not done again."""
    settings = replace(SETTINGS, save_every=None)
    calls: list[str] = []

    def counted(kind: str) -> None:
        calls.append(kind)
        if len(calls) == when:
            os.kill(os.getpid(), number)

    def step(model: Any, batch: Numbers) -> tuple[torch.Tensor, dict[str, float]]:
        counted("step")
        return squared(model, batch)

    def evaluate(model: Weight) -> float:
        counted("evaluation")
        return model.w.square().sum().item()

    whole = run(tmp_path / "whole", settings, evaluate=lambda m: m.w.square().sum().item())
    before = signal.getsignal(number)
    with pytest.raises(AprError, match=f"stopped by {number.name} at step .* of 18") as stopped:
        run(tmp_path / "parts", settings, step, evaluate)
    assert stopped.value.exit_code == 128 + number and signal.getsignal(number) is before
    parts = run(tmp_path / "parts", settings, step, evaluate)
    assert replace(parts, seconds=0) == replace(whole, seconds=0)
    assert calls.count("step") == 18
    ends = [json.loads(line) for line in (tmp_path / "parts" / METRICS).read_text().splitlines()]
    assert [e["epoch"] for e in ends if "eval_loss" in e] == [0, 1, 2, 3]


def test_a_run_says_where_it_goes_on(tmp_path: Path) -> None:
    assert not open_run(tmp_path / "run", {"seed": 1}, force=False)
    assert open_run(tmp_path / "run", {"seed": 1}, force=False)
    assert where_it_goes_on(tmp_path / "run").endswith(
        "before its first checkpoint, and begins anew"
    )
    run(tmp_path / "run", replace(SETTINGS, epochs=1))
    assert where_it_goes_on(tmp_path / "run") == "it goes on from its checkpoint at step 6"


def test_checkpoints_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third step where a step takes 50 seconds and checkpoints are 2 minutes apart."""
    clock = iter(range(0, 10**6, 50))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock),
                                                      perf_counter=time.perf_counter))  # fmt: skip
    saved: list[int] = []
    monkeypatch.setattr(loop, "save_state", lambda root, now, state: saved.append(now.step))
    run(tmp_path, replace(SETTINGS, save_every=None, save_minutes=2.0, epochs=2))
    assert saved == [3, 6, 9, 12, 12]  # the last one at the end


def test_the_best_model_is_kept_and_patience_ends(tmp_path: Path) -> None:
    evaluations = iter([5.0, 3.0, 4.0, 3.5, 9.0])
    saved: list[float] = []

    def evaluate(model: Weight) -> float:
        saved.append(model.w.sum().item())
        return next(evaluations)

    report = run(tmp_path, replace(SETTINGS, epochs=9, patience=2), evaluate=evaluate)
    assert (report.best_eval, report.best_epoch, report.first_eval) == (3.0, 1, 5.0)
    assert report.stopped == "no better evaluation for 2 epochs" and report.steps == 18
    best = json.loads((tmp_path / "best/w.json").read_text())
    assert sum(best) == pytest.approx(saved[1])
    last = json.loads((tmp_path / "last/w.json").read_text())
    assert sum(last) == pytest.approx(saved[3])


def test_a_run_that_ends_inside_an_epoch_is_evaluated(tmp_path: Path) -> None:
    settings = replace(SETTINGS, max_steps=8)
    report = run(tmp_path, settings, evaluate=lambda model: model.w.square().sum().item() + 1)
    evaluations = [
        json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()
        if "eval_loss" in line
    ]  # fmt: skip
    assert [line["step"] for line in evaluations] == [0, 6, 8] and report.steps == 8
    assert [line["eval_rows"] for line in evaluations] == [2.0] * 3


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, where: str) -> None:
    calls = 0

    def failing(model: Any, batch: Numbers) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal calls
        calls += 1
        loss, more = squared(model, batch)
        if calls == 4:
            # The slope of a root at 0 is infinite, times 0 is no number: the loss is finite.
            loss = loss * float("nan") if where == "loss" else (0 * model.w).sum().sqrt()
        return loss, more

    with pytest.raises(AprError, match=r"stopped at step 4 of 18: the .* is nan; the batch is in"):
        run(tmp_path, SETTINGS, failing)
    saved = json.loads((tmp_path / BAD_BATCH).read_text())
    wanted = NumberData().batches(0)[3]
    assert saved["batches"] == [{"values": [float(i) for i in wanted]}] and saved["step"] == 3
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3


def test_divergence_stops_the_run(tmp_path: Path) -> None:
    calls = 0

    def rising(model: Any, batch: Numbers) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal calls
        calls += 1
        level = 2.0 if calls < 25 else 12.0
        return (level + 0 * model.w.sum()) * batch.weight, {}

    with pytest.raises(
        AprError, match=r"the loss rose from 2\.000 to .*bad_batch.json.*lower `learning_rate`"
    ):
        run(tmp_path, replace(SETTINGS, epochs=20), rising)
    assert calls < 35


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    run(tmp_path, SETTINGS)
    model = nn.Linear(2, 2)
    parameters = dict(model.named_parameters())
    training = Training(model, parameters, squared, NumberData(), lambda folder: None)  # type: ignore[arg-type]
    with pytest.raises(AprError, match="checkpoint does not fit: weight"):
        train(training, SETTINGS, tmp_path)
