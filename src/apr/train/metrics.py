"""A run's metrics: metrics.jsonl (a line a step, one an evaluation), TensorBoard, trackio, and a
picture of the loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apr.common.errors import AprError, UsageError
from apr.common.files import new_file, write_whole

REPORTS = ("none", "tensorboard", "trackio")
PICTURE = "loss.png"
# Lines of the metrics say where they are by these; all else in them is drawn.
_PLACES = ("step", "steps", "epoch", "all_tokens", "all_seconds")


class MetricsFile:
    """Appends to a file. count: lines a checkpoint knows of; what a killed run wrote after it, half
    a line perhaps, is dropped.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self.losses: list[float] = []
        self.evaluations: list[float] = []
        lines = path.read_text().splitlines() if count else []
        if len(lines) < count:
            raise AprError(f"{path} has {len(lines)} lines, its checkpoint knows {count}")
        write_whole(path, "".join(line + "\n" for line in lines[:count]))
        for line in lines[:count]:
            self._remember(json.loads(line))

    def add(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._remember(line)

    def _remember(self, line: dict[str, Any]) -> None:
        if "loss" in line:
            self.losses.append(line["loss"])
        if "eval_loss" in line:
            self.evaluations.append(line["eval_loss"])


def mean_ends(losses: Sequence[float]) -> dict[str, Any]:
    """The means of the first and of the last steps: those of single batches say little.

    {loss_start, loss_end, loss_steps}: up to 20 steps each, half of them at most; {} for none.
    """
    if not losses:
        return {}
    count = max(1, min(20, len(losses) // 2))
    start, end = sum(losses[:count]) / count, sum(losses[-count:]) / count
    return {"loss_start": start, "loss_end": end, "loss_steps": count}


def loss_text(result: Mapping[str, Any]) -> str:
    """What `mean_ends` says, for people."""
    if "loss_steps" not in result:
        return "no loss"
    steps = result["loss_steps"]
    of = f"the means of the first and last {steps} steps" if steps > 1 else "single steps"
    return f"loss {result['loss_start']:.4f} to {result['loss_end']:.4f} ({of})"


@contextmanager
def reporting(
    kind: str, folder: Path, first: int = 0
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that reports a line of the metrics; at the end the report is closed.

    kind: of `REPORTS`. folder: of the run; TensorBoard's files go to folder/tensorboard, trackio's
    project is the folder's name. first: steps of an earlier session; what it reported of later
    ones is replaced. Raises UsageError where the library is missing.
    """
    if kind == "tensorboard":
        writer = _tensorboard()(str(folder / "tensorboard"), purge_step=first + 1)

        def report(line: dict[str, Any]) -> None:
            for name, value in scalars(line):
                writer.add_scalar(name, value, line["step"])

        try:
            yield report
        finally:
            writer.close()
    elif kind == "trackio":
        trackio = _trackio()
        trackio.init(project=folder.resolve().name, name="finetune", resume="allow")
        try:
            yield lambda line: trackio.log(dict(scalars(line)), step=line["step"])
        finally:
            trackio.finish()
    else:
        yield lambda line: None


def check_report(kind: str) -> None:
    """Raises UsageError for an unknown report, or one whose library is missing."""
    if kind not in REPORTS:
        raise UsageError(f"`report_to` {kind} is unknown", f"one of {', '.join(REPORTS)}")
    if kind == "tensorboard":
        _tensorboard()
    elif kind == "trackio":
        _trackio()


def scalars(line: dict[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a line under the names they are reported by: train/loss, eval/loss, ..."""
    return [
        (f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}", value)
        for key, value in line.items()
        if key not in _PLACES
    ]


def measured(metrics: Path) -> dict[str, list[float]]:
    """What the first and the last evaluation found, by name; {} without any."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = [line for line in lines if "eval_loss" in line]
    if not found:
        return {}
    names = [key for key in found[0] if key.startswith("eval_")]
    return {key.removeprefix("eval_"): [found[0][key], found[-1][key]] for key in names}


def draw_losses(metrics: Path, picture: Path, unit: str = "nats per token") -> bool:
    """The training loss of every step and held-out losses as a picture; False without matplotlib.

    metrics: metrics.jsonl. Held-out points stand at the step they were measured at.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), linewidth=1, label="training loss")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), marker="o", label="held-out loss")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        hint = "pip install 'apr[tensorboard]'"
        raise UsageError("`report_to` tensorboard needs tensorboard", hint) from None
    return SummaryWriter


def _trackio() -> Any:
    try:
        import trackio
    except ImportError:
        raise UsageError(
            "`report_to` trackio needs trackio", "pip install 'apr[trackio]'"
        ) from None
    return trackio
