"""metrics.jsonl: one line a step, one an evaluation; and how a run is shown while it goes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from apr.common.byte_progress import INTERVAL, PATIENCE
from apr.common.errors import AprError

if TYPE_CHECKING:
    import rich.progress


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
        temporary = path.with_name(path.name + ".new")
        temporary.write_text("".join(line + "\n" for line in lines[:count]))
        temporary.replace(path)
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


class TrainProgress:
    """Loss, tokens a second, time left and memory on stderr: a bar on a terminal, else lines."""

    def __init__(self, enabled: bool = True, stream: IO[str] | None = None) -> None:
        self._enabled = enabled
        self._stream = stream if stream is not None else sys.stderr
        self._next = time.monotonic() + PATIENCE
        self._bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None

    def __enter__(self) -> TrainProgress:
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def show(self, line: dict[str, Any]) -> None:
        """line: of the metrics, with steps, all_tokens and all_seconds of the run."""
        if not self._enabled:
            return
        if "eval_loss" in line:
            self._print(
                f"epoch {line['epoch']}: held-out loss {line['eval_loss']:.4f},"
                f" perplexity {line['eval_perplexity']:.3f}"
            )
            return
        if time.monotonic() < self._next:
            return
        rate = line["all_tokens"] / max(line["all_seconds"], 1e-9)
        left = (line["steps"] - line["step"]) * line["all_seconds"] / max(line["step"], 1)
        state = (
            f"loss {line['loss']:.4f}, {rate:,.0f} tok/s, {_duration(left)} left,"
            f" {memory_gb():.2f} GB"
        )
        if self._stream.isatty():
            self._update_bar(line, state)
        else:
            self._next = time.monotonic() + INTERVAL
            self._print(f"step {line['step']} of {line['steps']}: {state}")

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar[0].console.print(f"apr: {text}")
        else:
            print(f"apr: {text}", file=self._stream, flush=True)

    def _update_bar(self, line: dict[str, Any], state: str) -> None:
        import rich.console
        import rich.progress

        if self._bar is None:
            bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.description}"),
                console=rich.console.Console(file=self._stream),
                transient=True,
            )
            bar.start()
            self._bar = (bar, bar.add_task("", total=line["steps"]))
        self._bar[0].update(self._bar[1], completed=line["step"], description=state)


def memory_gb() -> float:
    """Memory of this process (GPU memory where it uses one), 1e9 bytes."""
    import psutil
    import torch

    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return psutil.Process().memory_info().rss / 1e9


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
