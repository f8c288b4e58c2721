"""`apr finetune --adapters-config`: several adapters in one run, each as if it were trained alone.

In every epoch all adapters walk through their own batches side by side; one whose data are
shorter waits for the next epoch. Learning rate, its schedule, clipping and AdamW's state are each
adapter's own. The best model is the best by the mean of the held-out losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apr.checkpoint.model_folder import refuse_overlap
from apr.common.errors import AprError
from apr.hub.checksums import file_sha256
from apr.model.transformer import Transformer
from apr.text import fim_file
from apr.train.adapter_files import save_adapter
from apr.train.finetune import (
    base_name,
    evaluator,
    load_model,
    run_result,
    run_task,
    write_manifest,
)
from apr.train.forward import hidden_states, output_factors
from apr.train.loop import Task
from apr.train.losses import chunked_cross_entropy
from apr.train.optimizer import Optimizer
from apr.train.packing import MULTIPLE, Batch, PackedData, make_batch
from apr.train.prepare import Prepared
from apr.train.run_folder import open_run, publish
from apr.train.settings import TrainSettings
from apr.train.shared_base import Spans, add_adapters, only


@dataclass(frozen=True)
class SharedBatch:
    """The documents of several adapters in one batch. spans: (adapter, start, end) of its tokens;
    targets: of each span, in the same order.
    """

    joined: Batch
    spans: tuple[tuple[str, int, int], ...]
    targets: tuple[int, ...]
    weight: int = 1  # losses are means of each adapter's own tokens already

    @property
    def tokens(self) -> int:
        return self.joined.tokens

    def to_json(self) -> dict[str, Any]:
        return {**self.joined.to_json(), "spans": list(self.spans)}


@dataclass(frozen=True)
class SharedData:
    """An epoch's batches are [epoch, position]: of every adapter that has one there."""

    parts: Mapping[str, PackedData]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a constant)
    _packed: dict[int, dict[str, list[list[int]]]] = field(default_factory=dict)

    def batches(self, epoch: int) -> list[list[int]]:
        count = max(map(len, self.of_each(epoch).values()))
        return [[epoch, position] for position in range(count)]

    def of_each(self, epoch: int) -> dict[str, list[list[int]]]:
        """The documents (by index) of each adapter's batches of an epoch."""
        if epoch not in self._packed:
            self._packed.clear()
            self._packed[epoch] = {n: part.batches(epoch) for n, part in self.parts.items()}
        return self._packed[epoch]

    def load(self, batch: Sequence[int]) -> SharedBatch:
        epoch, position = batch
        documents, spans, targets, at = [], [], [], 0
        for name, batches in self.of_each(epoch).items():
            if position >= len(batches):
                continue
            own = [self.parts[name].documents[i] for i in batches[position]]
            size = sum(map(len, own))
            spans.append((name, at, at + size))
            targets.append(sum(document.targets for document in own))
            documents += own
            at += size
        joined = make_batch(documents, MULTIPLE).to(self.device)
        name, start, _ = spans[-1]
        spans[-1] = (name, start, len(joined.ids))  # what fills the batch up has no loss
        return SharedBatch(joined, tuple(spans), tuple(targets))


def steps_of_each(data: SharedData, settings: TrainSettings) -> dict[str, int]:
    """Optimizer steps each adapter gets in the whole run."""
    found = dict.fromkeys(data.parts, 0)
    left = math.inf if settings.max_steps is None else settings.max_steps
    epoch = 0
    while left > 0 and (settings.max_steps is not None or epoch < settings.epochs):
        lengths = {name: len(batches) for name, batches in data.of_each(epoch).items()}
        for name, length in lengths.items():
            found[name] += int(min(length, left))
        left -= max(lengths.values())
        epoch += 1
    return found


def shared_step(
    model: Transformer, batch: SharedBatch, spans: Spans, recompute: bool = False
) -> tuple[torch.Tensor, dict[str, float]]:
    """(loss, each adapter's loss). The loss reads as the mean of the adapters' mean losses, and
    has the gradient of their sum: each adapter's own.
    """
    spans.now = batch.spans
    hidden = hidden_states(model, batch.joined, recompute)[batch.joined.rows]
    hidden, weight = output_factors(model, hidden)
    losses = []
    parts = zip(hidden.split(batch.targets), batch.joined.labels.split(batch.targets), strict=True)
    for (own, labels), count in zip(parts, batch.targets, strict=True):
        total = chunked_cross_entropy(own, weight, labels, model.config.logit_softcap)
        losses.append(total / max(count, 1))
    whole = torch.stack(losses).sum()
    shown = whole.detach() / len(losses)
    named = zip(batch.spans, losses, strict=True)
    return whole - whole.detach() + shown, {f"loss.{n}": float(v.detach()) for (n, *_), v in named}


class SharedOptimizer:
    """An optimizer of its own for each adapter; one without gradients takes no step."""

    def __init__(
        self,
        parameters: Mapping[str, Mapping[str, nn.Parameter]],
        settings: Mapping[str, TrainSettings],
        totals: Mapping[str, int],
    ) -> None:
        self._settings, self._totals = settings, totals
        self._parts = {n: Optimizer(own, settings[n]) for n, own in parameters.items()}
        self._done = dict.fromkeys(parameters, 0)

    def step(self, rate: float) -> float:
        """Returns the largest of the gradients' norms. rate: unused, each has its own."""
        norms = []
        for name, part in self._parts.items():
            if all(p.grad is None for p in part.parameters.values()):
                continue
            own, done = self._settings[name], self._done[name]
            factor = own.rate_factor(done, self._totals[name])
            norms.append(part.step(own.learning_rate * factor))
            self._done[name] = done + 1
        finite = all(map(math.isfinite, norms))
        return max(norms) if finite else math.nan

    def state(self) -> dict[str, torch.Tensor]:
        found = {f"{name}/done": torch.tensor(done) for name, done in self._done.items()}
        for name, part in self._parts.items():
            found |= {f"{name}/{key}": value for key, value in part.state().items()}
        return found

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, part in self._parts.items():
            if f"{name}/done" not in state:
                raise AprError(f"the checkpoint has no adapter {name}", "--force begins anew")
            self._done[name] = int(state[f"{name}/done"])
            start = f"{name}/"
            part.restore({k[len(start) :]: v for k, v in state.items() if k.startswith(start)})


def finetune_several(
    prepared: Mapping[str, Prepared],
    folder: str | Path,
    *,
    force: bool = False,
    on_log: Callable[[dict[str, Any]], None] = lambda line: None,
    report_to: str = "none",
) -> dict[str, Any]:
    """Train, or go on with a run that was stopped; folder/NAME is each adapter. Returns what
    `--json` prints. Raises as `finetune` does.
    """
    first, target = next(iter(prepared.values())), Path(folder).expanduser()
    refuse_overlap(target, first.pulled.path)
    files = {path for one in prepared.values() for path in one.files}
    inputs = {str(path): file_sha256(path) for path in sorted(files)}
    asked = {name: one.request.to_json() for name, one in prepared.items()}
    open_run(target, {**asked, "sha256": inputs}, force)
    model = load_model(first)
    device = model.device
    parameters, spans = add_adapters(
        model, {name: (o.request.lora, o.request.train.seed) for name, o in prepared.items()}
    )
    data = SharedData({name: one.data for name, one in prepared.items()}, device)
    settings = {name: one.request.train for name, one in prepared.items()}
    evaluations = {
        name: evaluator(one, model, device) for name, one in prepared.items() if one.held_out
    }
    latest: dict[str, float] = {}

    def evaluate() -> float:
        for name, one in evaluations.items():
            with only(model, name):
                latest[f"eval_loss.{name}"] = one()
        return sum(latest.values()) / len(latest)

    fim = fim_file(first.request.fim.tokens)

    def save(goal: Path) -> None:
        for name in prepared:
            with only(model, name):
                save_adapter(model, goal / name, base_name(first.request.model), fim)

    task = Task(
        model=model,
        parameters={f"{n}/{key}": p for n, own in parameters.items() for key, p in own.items()},
        step=lambda model, batch: shared_step(model, batch, spans, first.request.recompute),
        data=data,
        save=save,
        evaluate=evaluate if evaluations else None,
        on_log=on_log,
        optimizer=SharedOptimizer(parameters, settings, steps_of_each(data, first.request.train)),
        eval_details=lambda: latest,
    )
    report = run_task(task, first.request.train, target, report_to)
    publish(target / ("best" if report.best_epoch is not None else "last"), target)
    result = {
        **run_result(first, target, report),
        "trainable_parameters": sum(p.numel() for p in task.parameters.values()),
        "data": {name: one.report.to_json() for name, one in prepared.items()},
        "adapters": {name: str(target / name) for name in prepared},
    }
    write_manifest(first, target, inputs, {**result, "requests": asked})
    return result
