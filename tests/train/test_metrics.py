"""Metrics in TensorBoard's files, read back by its own reader, and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from apr.common.errors import UsageError
from apr.train.metrics import check_report, draw_losses, loss_text, mean_ends, reporting

LINES: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0, "eval_loss": 3.0, "eval_perplexity": math.exp(3)},
    *({"step": i, "epoch": 0, "loss": 3 / i, "lr": 1e-3, "steps": 9} for i in range(1, 10)),
    {"step": 9, "epoch": 1, "eval_loss": 1.5, "eval_perplexity": math.exp(1.5)},
]


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ([], "no loss"),
        ([2.0], "loss 2.0000 to 2.0000 (single steps)"),
        ([1.0, 3.0, 2.0], "loss 1.0000 to 2.0000 (single steps)"),
        # One batch is harder than another; what is learned shows over several.
        ([1.17, 3.0, 2.0, 1.57], "loss 2.0850 to 1.7850 (the means of the first and last 2 steps)"),
        ([*([4.0] * 20), *([9.0] * 60), *([1.0] * 20)],
         "loss 4.0000 to 1.0000 (the means of the first and last 20 steps)"),
    ],
)  # fmt: skip
def test_the_loss_of_a_run_is_that_of_several_steps(losses: list[float], text: str) -> None:
    assert loss_text(mean_ends(losses)) == text


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    """Also of a run that was stopped after step 6 and goes on from a checkpoint of step 4."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with reporting("tensorboard", tmp_path) as tell:
        for line in LINES[:7]:
            tell({**line, "loss": 100.0} if line["step"] > 4 else line)
    with reporting("tensorboard", tmp_path, first=4) as tell:
        for line in LINES[5:]:
            tell(line)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {
        "train/loss", "train/lr", "eval/loss", "eval/perplexity",
    }  # fmt: skip
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(i, pytest.approx(3 / i)) for i in range(1, 10)]
    assert [event.value for event in found.Scalars("eval/loss")] == [3.0, 1.5]


def test_the_picture_shows_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves' data, asked from matplotlib's own objects, and a PNG file."""
    figures = pytest.importorskip("matplotlib.figure")
    made = []

    class Kept(figures.Figure):  # type: ignore[name-defined, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(figures, "Figure", Kept)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert draw_losses(metrics, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    train, held_out = made[0].axes[0].lines
    assert list(train.get_xdata()) == list(range(1, 10))
    assert list(train.get_ydata()) == [3 / i for i in range(1, 10)]
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([0, 9], [3.0, 1.5])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_what_is_missing_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"`report_to` wandb is unknown .*none, tensorboard"):
        check_report("wandb")
    for module, name in (("torch.utils.tensorboard", "tensorboard"), ("trackio", "trackio")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(UsageError, match=rf"needs {name} \(pip install 'apr\[{name}\]'\)"):
            check_report(name)
    check_report("none")
