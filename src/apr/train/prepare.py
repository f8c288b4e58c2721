"""From a request to everything that is known before a weight is read: data, memory, steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from apr.checkpoint import Checkpoint, open_checkpoint
from apr.checkpoint.adapter import open_adapter
from apr.common.errors import UsageError
from apr.hub import Pulled, pull
from apr.hub.datasets import local_files
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.opened import OpenedModel
from apr.model.transformer import Transformer
from apr.text import Tokenizer, load_tokenizer
from apr.train.base import base_size, check_base
from apr.train.dataset import DataReport, E, Example, split_off
from apr.train.loop import Data, Objective, total_steps
from apr.train.memory_plan import MemoryPlan, plan_memory
from apr.train.objective import attention_note
from apr.train.packing import Document
from apr.train.train_settings import Method, RunSettings
from apr.train.zeros import filling_note

# What method "auto" tries, in this order: (method, recompute).
AUTO: tuple[tuple[Method, bool], ...] = (
    ("lora", False),
    ("lora", True),
    ("qlora", False),
    ("qlora", True),
)


@dataclass(frozen=True)
class Learning(Generic[E]):
    """What is learned, and from what.

    command: the verb. read: examples of files; the last argument says whether they are held out.
    data: examples as the loop takes them; room: tokens of a micro-batch at most. objective: with
    the model as training begins and the data, (what a step computes, training data, held-out
    data). shown: an example's document, for the report. nats: the loss is nats per token, so that
    its exponential is a perplexity.
    """

    command: str
    read: Callable[[Any, Sequence[Path], Tokenizer, bool], tuple[list[E], DataReport]]
    data: Callable[[Any, Sequence[E], int], Data[Any]]
    room: Callable[[Any, Sequence[E]], int]
    objective: Callable[
        [Prepared[E], Transformer], tuple[Objective[Any], Data[Any], Data[Any] | None]
    ]
    shown: Callable[[E], Document]
    nats: bool = True


@dataclass(frozen=True)
class Prepared(Generic[E]):
    """Everything that is known before a weight is read."""

    learning: Learning[E]
    request: RunSettings
    pulled: Pulled
    checkpoint: Checkpoint
    config: ModelConfig
    tokenizer: Tokenizer
    examples: list[E]
    held_out: list[E]
    report: DataReport
    eval_report: DataReport | None
    memory: MemoryPlan
    files: tuple[Path, ...]

    @property
    def base(self) -> OpenedModel:
        """The model that training begins with."""
        return _base(self.request, self.pulled)

    @property
    def data(self) -> Data[Any]:
        return self.learning.data(self.request, self.examples, self.request.train.seed)

    @property
    def held_out_data(self) -> Data[Any] | None:
        return self.learning.data(self.request, self.held_out, 0) if self.held_out else None

    def summary(self) -> dict[str, Any]:
        """What `--plan` shows; memory in bytes."""
        request, settings = self.request, self.request.train
        batches = len(self.data.batches(0))
        return {
            "model": request.model,
            "method": request.method,
            "dtype": request.dtype,
            "recompute": request.recompute,
            "trainable_parameters": self.memory.trainable,
            "parameters": self.memory.parameters,
            "memory": self.memory.components(),
            "peak_memory_bytes": self.memory.peak,
            "batches_per_epoch": batches,
            "steps": total_steps(self.data, settings),
            "tokens_per_epoch": self.report.tokens,
            "data": self.report.to_json(),
            "eval_documents": len(self.held_out),
            "notes": [note for note in self._notes() if note],
        }

    def _notes(self) -> tuple[str, ...]:
        request = self.request
        kept = request.keep_mask
        return (
            attention_note(self.config, request.dtype),
            "" if kept else filling_note(self.checkpoint, self.config, request.method),
        )


def prepare(
    request: RunSettings,
    learning: Learning[E],
    *,
    offline: bool = False,
    progress: bool = True,
) -> Prepared[E]:
    """Find the model, read and check all data, plan memory and steps; no weight is loaded.

    Raises UsageError naming the field, or the file and
    line, that is wrong.
    """
    if not request.data:
        raise UsageError("no training data", "`data` FILE.jsonl")
    pulled = pull(request.model, offline=offline, progress=progress)
    checkpoint = open_checkpoint(pulled.path)
    config = config_from_checkpoint(checkpoint)
    if request.adapter is not None:
        _ = _base(request, pulled).checkpoint  # which checks that it fits
    if request.max_length > config.max_position:
        if request.max_length != RunSettings.max_length:
            raise UsageError(
                f"`max_length` {request.max_length} is beyond the model's context",
                f"at most {config.max_position}",
            )
        request = replace(request, max_length=config.max_position)
    tokenizer = load_tokenizer(pulled.path)
    seed = request.train.seed
    files = local_files(request.data, offline=offline, progress=progress)
    eval_files = local_files(request.eval_data, offline=offline, progress=progress)
    examples, report = learning.read(request, files, tokenizer, False)
    if not examples:
        raise _nothing_left(request.data, report, "learn from")
    held_out: list[E] = []
    eval_report = None
    if request.eval_data:
        held_out, eval_report = learning.read(request, eval_files, tokenizer, True)
        if not held_out:
            raise _nothing_left(request.eval_data, eval_report, "evaluate on")
    elif request.eval_split:
        count = len(examples)
        examples, held_out = split_off(examples, report.sizes, request.eval_split, seed)
        if not (held_out and examples):
            what = "none" if examples else "all of them"
            raise UsageError(
                f"`eval_split` {request.eval_split} of {count} documents is {what}",
                "another part, or `eval_data`",
            )
    _check_warmup(request, learning.data(request, examples, seed))
    request, memory = _planned(request, learning, checkpoint, config, examples)
    return Prepared(
        learning, request, pulled, checkpoint, config, tokenizer, examples, held_out, report,
        eval_report, memory, (*files, *eval_files),
    )  # fmt: skip


def _check_warmup(request: RunSettings, data: Data[Any]) -> None:
    """Raises UsageError where a run ends before its warm-up."""
    if request.train.warmup > 1:
        total = total_steps(data, request.train)
        if request.train.warmup_steps(total) > total:
            raise UsageError(
                f"`warmup` {request.train.warmup:g} is more than the {total} steps there are",
                "below 1 it is a share of all steps",
            )


def _nothing_left(data: Sequence[str], report: DataReport, purpose: str) -> UsageError:
    reasons = "; ".join(f"{count} of {report.rows} rows: {report.reason(reason)}"
                        for reason, count in report.dropped.most_common(3))  # fmt: skip
    short = any(reason.startswith("nothing to learn within") for reason in report.dropped)
    return UsageError(
        f"{', '.join(data)}: no row is left to {purpose}; {reasons}",
        "a larger `max_length`" if short else "",
    )


def _base(request: RunSettings, pulled: Pulled) -> OpenedModel:
    adapter = None if request.adapter is None else open_adapter(request.adapter)
    return OpenedModel(request.model, pulled, adapter)


def _planned(
    request: RunSettings,
    learning: Learning[E],
    checkpoint: Checkpoint,
    config: ModelConfig,
    examples: list[E],
) -> tuple[RunSettings, MemoryPlan]:
    """The request with its method chosen, and the memory it will take."""
    largest = _largest(learning.room(request, examples), examples)

    def plan(request: RunSettings) -> MemoryPlan:
        how = (request.method, request.dtype, request.keep_mask)
        size = base_size(checkpoint, config, *how)
        return plan_memory(config, size, request.method, request.lora, request.dtype,
                           bool(request.recompute), largest, request.adapter,
                           request.train.accumulate)  # fmt: skip

    if request.memory is None:
        check_base(checkpoint, config, request.method)
        return request, plan(request)
    least = None
    for method, recompute in AUTO:
        tried = replace(request, method=method, recompute=recompute, memory=None)
        try:
            check_base(checkpoint, config, method)
        except UsageError:
            continue
        memory = plan(tried)
        if memory.peak <= request.memory:
            return tried, memory
        least = min(least or memory.peak, memory.peak)
    raise UsageError(
        f"`memory` {request.memory / 1e9:.1f} GB is too little: {(least or 0) / 1e9:.1f} GB are"
        " needed",
        "a smaller `batch_size` or `max_length`",
    )


def _largest(room: int, examples: Sequence[Example]) -> tuple[int, int, int]:
    """(tokens, targets, longest document) of the largest batch there will be."""
    total = sum(map(len, examples))
    tokens = min(room, total)
    share = sum(example.targets for example in examples) / total
    return tokens, max(1, round(tokens * share)), max(example.longest for example in examples)
