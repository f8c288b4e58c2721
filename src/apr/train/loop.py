"""The training loop: it knows neither the objective, which turns a batch into a loss, nor the
method, which decides what is trained and how a model is saved.

Bit by bit repeatable: the order of the data follows from the seed, and a run that was killed goes
on from its last checkpoint with the same parameters, optimizer, random numbers and place in the
data, hence with the losses it would have had.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from apr.common.errors import AprError
from apr.model.transformer import Transformer
from apr.train.metrics import MetricsFile
from apr.train.optimizer import Optimizer
from apr.train.run_folder import CHECKPOINTS, Progress, load_state, save_state, saved_states
from apr.train.stopping import Stopped, stop_signals
from apr.train.train_settings import TrainSettings

METRICS, BAD_BATCH = "metrics.jsonl", "bad_batch.json"
# Divergence: the smoothed loss this far above the lowest it has been, in nats and as a multiple.
SMOOTHING, DIVERGED_BY, DIVERGED_TIMES, DIVERGED_AFTER = 0.9, 2.0, 2.0, 20


class BatchLike(Protocol):
    """What the loop knows of a batch. weight: what its loss is a sum over (tokens, pairs)."""

    @property
    def weight(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    def to_json(self) -> dict[str, Any]: ...


B = TypeVar("B", bound=BatchLike)
B_co = TypeVar("B_co", bound=BatchLike, covariant=True)
# (model, batch) -> (the batch's summed loss, further sums to report by name)
Objective = Callable[[Transformer, B], tuple[torch.Tensor, dict[str, float]]]


class Data(Protocol[B_co]):
    """batches: what an epoch consists of, the same for the same epoch; load: one of them."""

    def batches(self, epoch: int) -> Sequence[Sequence[int]]: ...
    def load(self, batch: Sequence[int]) -> B_co: ...


@dataclass(frozen=True)
class Training(Generic[B]):
    """What is trained, to what end, on what. parameters: by name. save: write the model as it is
    now to a folder, atomically. held_out: what the objective is evaluated on, or None. on_log: told
    every line of the metrics. nats: the loss is nats per token; evaluations give a perplexity, too.
    """

    model: Transformer
    parameters: dict[str, nn.Parameter]
    objective: Objective[B]
    data: Data[B]
    save: Callable[[Path], None]
    held_out: Data[B] | None = None
    on_log: Callable[[dict[str, Any]], None] = lambda line: None
    nats: bool = True


@dataclass(frozen=True)
class TrainReport:
    """losses: of every step, per unit of weight. first_eval, last_eval, best_eval: mean loss on
    held-out data before the first step, at the end and at best. seconds: of training. stopped:
    why it ended before its last step, or "".
    """

    steps: int
    losses: list[float]
    first_eval: float | None
    last_eval: float | None
    best_eval: float | None
    best_epoch: int | None
    tokens: int
    seconds: float
    stopped: str


def total_steps(data: Data[Any], settings: TrainSettings) -> int:
    """Optimizer steps of a whole run."""
    if settings.max_steps is not None:
        return settings.max_steps
    counts = (len(data.batches(epoch)) for epoch in range(settings.epochs))
    return sum(-(-count // settings.accumulate) for count in counts)


def train(training: Training[B], settings: TrainSettings, folder: Path) -> TrainReport:
    """Run to the end, or on from folder's last checkpoint. Writes metrics.jsonl, checkpoints/,
    best/ and last/ (the model, as training.save writes it) in folder.

    Raises AprError when the loss is not finite or diverges; bad_batch.json holds the batch. Raises
    Stopped, with a checkpoint saved, after SIGINT, SIGTERM or SIGHUP.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _Run(training, settings, folder).run()


class _Run(Generic[B]):
    def __init__(self, training: Training[B], settings: TrainSettings, folder: Path) -> None:
        self.training, self.settings, self.folder = training, settings, folder
        self.optimizer = Optimizer(training.parameters, settings)
        self.total = total_steps(training.data, settings)
        self.progress = Progress()
        self.stopped = ""
        torch.manual_seed(settings.seed)
        states = saved_states(folder / CHECKPOINTS)
        if states:
            self.progress, tensors = load_state(states[-1])
            self.optimizer.restore(tensors)
        self.metrics = MetricsFile(folder / METRICS, self.progress.logged)
        self.saved_at = time.monotonic()
        self.asked: Callable[[], int] = lambda: 0

    def run(self) -> TrainReport:
        with stop_signals() as self.asked:
            return self._run()

    def _run(self) -> TrainReport:
        now = self.progress
        if self.training.held_out is not None and not self.metrics.evaluations:
            self._evaluate(self.training.held_out)
        self._out_of_patience()  # it was, where the run was killed before it could say so
        while now.step < self.total and not self.stopped:
            batches = self.training.data.batches(now.epoch)
            self._epoch(batches)
            if now.position >= len(batches):
                self._measure(now.epoch + 1)
        # The last step was inside an epoch, or the run was stopped before it was measured.
        if now.position and now.measured != now.step:
            is_over = now.position >= len(self.training.data.batches(now.epoch))
            self._measure(now.epoch + is_over)
        self._checkpoint()
        self._end_if_asked()
        self.training.save(self.folder / "last")
        evaluations = self.metrics.evaluations
        return TrainReport(
            steps=now.step,
            losses=self.metrics.losses,
            first_eval=evaluations[0] if evaluations else None,
            last_eval=evaluations[-1] if evaluations else None,
            best_eval=now.best_loss,
            best_epoch=now.best_epoch,
            tokens=now.tokens,
            seconds=now.seconds,
            stopped=self.stopped,
        )

    def _epoch(self, batches: Sequence[Sequence[int]]) -> None:
        now, settings = self.progress, self.settings
        self.training.model.train()
        while now.position < len(batches) and now.step < self.total:
            self._step(batches[now.position : now.position + settings.accumulate])
            minutes = (time.monotonic() - self.saved_at) / 60
            is_due = settings.save_every and now.step % settings.save_every == 0
            if is_due or (settings.save_minutes and minutes >= settings.save_minutes):
                self._checkpoint()
            self._end_if_asked()

    def _end_if_asked(self) -> None:
        """Raises Stopped. To be called where a checkpoint holds all that was done."""
        number = self.asked()
        if number:
            self._checkpoint()
            raise Stopped(number, self.progress.step, self.total)

    def _step(self, group: Sequence[Sequence[int]]) -> None:
        """One optimizer step over micro-batches."""
        now, begin = self.progress, time.perf_counter()
        rate = self.settings.peak_rate * self.settings.rate_factor(now.step, self.total)
        loaded = [self.training.data.load(batch) for batch in group]
        weight = sum(batch.weight for batch in loaded)
        loss, sums = 0.0, dict[str, float]()
        for batch in loaded:
            value, more = self.training.objective(self.training.model, batch)
            (value / weight).backward()
            part = float(value.detach())
            if not math.isfinite(part):
                self._give_up(f"the loss is {part}", batch)
            loss += part / weight
            for key, number in more.items():
                sums[key] = sums.get(key, 0.0) + number / weight
        norm = self.optimizer.step(rate)
        if not math.isfinite(norm):
            self._give_up(f"the gradient's norm is {norm}", *loaded)
        tokens = sum(batch.tokens for batch in loaded)
        now.step, now.position = now.step + 1, now.position + len(group)
        now.tokens += tokens
        seconds = time.perf_counter() - begin
        now.seconds += seconds
        self._log(
            {
                "step": now.step,
                "epoch": now.epoch,
                "loss": loss,
                **sums,
                "lr": rate,
                "grad_norm": norm,
                "tokens": tokens,
                "weight": weight,
                "seconds": round(seconds, 4),
            }
        )
        self._watch(loss, loaded)

    def _watch(self, loss: float, batches: Sequence[B]) -> None:
        now = self.progress
        smoothed = loss if now.smoothed is None else now.smoothed
        now.smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        now.lowest = now.smoothed if now.lowest is None else min(now.lowest, now.smoothed)
        limit = max(now.lowest + DIVERGED_BY, now.lowest * DIVERGED_TIMES)
        if now.step > DIVERGED_AFTER and now.smoothed > limit:
            self._give_up(f"the loss rose from {now.lowest:.3f} to {now.smoothed:.3f}", *batches)

    def _measure(self, epoch: int) -> None:
        """Evaluate; keep the best model; stop when it no longer gets better. epoch: that is over,
        or the present one where the last step was inside it.
        """
        now = self.progress
        loss = None
        if self.training.held_out is not None:
            loss = self._evaluate(self.training.held_out, epoch)
            now.measured = now.step
        if epoch > now.epoch:
            now.epoch, now.position = epoch, 0
        if loss is None:
            return
        if now.best_loss is None or loss < now.best_loss:
            now.best_loss, now.best_epoch = loss, now.epoch
            self.training.save(self.folder / "best")
        self._checkpoint()
        self._out_of_patience()

    def _out_of_patience(self) -> None:
        now, patience = self.progress, self.settings.patience
        if patience is not None and now.best_epoch is not None:
            without = now.epoch - now.best_epoch
            if without >= patience:
                self.stopped = f"no better evaluation for {without} epochs"

    @torch.no_grad()
    def _evaluate(self, data: Data[B], epoch: int = 0) -> float:
        """The mean loss on held-out data, logged with the means of what else the objective sums."""
        self.training.model.eval()
        loss, weight, sums = 0.0, 0, dict[str, float]()
        for group in data.batches(0):
            self._end_if_asked()
            batch = data.load(group)
            value, more = self.training.objective(self.training.model, batch)
            loss, weight = loss + float(value), weight + batch.weight
            for key, number in more.items():
                sums[key] = sums.get(key, 0.0) + number
        loss /= weight
        self._log(
            {
                "step": self.progress.step,
                "epoch": epoch,
                "eval_loss": loss,
                **({"eval_perplexity": math.exp(min(loss, 700.0))} if self.training.nats else {}),
                **{f"eval_{key}": number / weight for key, number in sums.items()},
            }
        )
        return loss

    def _log(self, line: dict[str, Any]) -> None:
        self.metrics.add(line)
        self.progress.logged += 1
        self.training.on_log(
            {**line, "steps": self.total, "all_tokens": self.progress.tokens,
             "all_seconds": self.progress.seconds}
        )  # fmt: skip

    def _checkpoint(self) -> None:
        save_state(self.folder / CHECKPOINTS, self.progress, self.optimizer.state())
        self.saved_at = time.monotonic()

    def _give_up(self, what: str, *batches: B) -> None:
        now, path = self.progress, self.folder / BAD_BATCH
        content = {
            "step": now.step,
            "epoch": now.epoch,
            "reason": what,
            "batches": [batch.to_json() for batch in batches],
        }
        path.write_text(json.dumps(content) + "\n")
        raise AprError(
            f"training stopped at step {now.step + 1} of {self.total}: {what}; the batch is in"
            f" {path}",
            "lower `learning_rate`, raise `warmup`, or look at that data",
        )
