"""From a request to everything that is known before a weight is read: data, memory, steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.checkpoint import Checkpoint, open_checkpoint
from apr.checkpoint.adapter import open_adapter
from apr.common.errors import UsageError
from apr.hub import Pulled, pull
from apr.hub.datasets import local_files
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.opened import OpenedModel
from apr.text import Tokenizer, load_tokenizer
from apr.train.base import base_size, check_base
from apr.train.dataset import DataReport, read_documents, split_off
from apr.train.examples import fim_transform
from apr.train.loop import total_steps
from apr.train.memory_plan import MemoryPlan, plan_memory
from apr.train.objective import attention_note
from apr.train.packing import Document, PackedData
from apr.train.train_settings import FinetuneRequest, Method

# What method "auto" tries, in this order: (method, recompute).
AUTO: tuple[tuple[Method, bool], ...] = (
    ("lora", False),
    ("lora", True),
    ("qlora", False),
    ("qlora", True),
)


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a weight is read."""

    request: FinetuneRequest
    pulled: Pulled
    checkpoint: Checkpoint
    config: ModelConfig
    tokenizer: Tokenizer
    documents: list[Document]
    held_out: list[Document]
    report: DataReport
    eval_report: DataReport | None
    memory: MemoryPlan
    files: tuple[Path, ...]

    @property
    def base(self) -> OpenedModel:
        """The model that training begins with."""
        return _base(self.request, self.pulled)

    @property
    def data(self) -> PackedData:
        return self._packed(self.documents, self.request.train.seed)

    @property
    def held_out_data(self) -> PackedData:
        return self._packed(self.held_out, 0)

    def _packed(self, documents: list[Document], seed: int) -> PackedData:
        request = self.request
        return PackedData(
            documents, request.max_length, request.train.batch_size, seed, request.packing
        )

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
            "notes": [note for note in [attention_note(self.config, request.dtype)] if note],
        }


def prepare(request: FinetuneRequest, *, offline: bool = False, progress: bool = True) -> Prepared:
    """Find the model, read and check all data, plan memory and steps; no weight is loaded.

    Raises UsageError naming the flag, or the file and line, that is wrong.
    """
    if not request.data:
        raise UsageError("no training data", "`data` FILE.jsonl")
    pulled = pull(request.model, offline=offline, progress=progress)
    checkpoint = open_checkpoint(pulled.path)
    config = config_from_checkpoint(checkpoint)
    if request.adapter is not None:
        _ = _base(request, pulled).checkpoint  # which checks that it fits
    if request.max_length > config.max_position:
        raise UsageError(
            f"`max_length` {request.max_length} is beyond the model's context",
            f"at most {config.max_position}",
        )
    tokenizer = load_tokenizer(pulled.path)
    options: dict[str, Any] = {"chat": request.chat, "skip_bad_rows": request.skip_bad_rows}
    if request.fim.rate:
        options["transform"] = fim_transform(request.fim, tokenizer, request.max_length)
    seed = request.train.seed
    files = local_files(request.data, offline=offline, progress=progress)
    eval_files = local_files(request.eval_data, offline=offline, progress=progress)
    documents, report = read_documents(files, tokenizer, request.max_length, seed=seed, **options)
    if request.fim.rate and not report.forms:
        raise UsageError("`rate`: no row is plain text", "rows of {text} are filled in")
    held_out: list[Document] = []
    eval_report = None
    if request.eval_data:
        held_out, eval_report = read_documents(eval_files, tokenizer, request.max_length, **options)
    elif request.eval_split:
        documents, held_out = split_off(documents, request.eval_split, seed)
        if not held_out:
            raise UsageError(
                f"`eval_split` {request.eval_split} of {len(documents)} documents is none",
                "a larger part, or `eval_data`",
            )
    if not documents:
        raise UsageError(f"{request.data[0]}: no row is left to learn from", "see `max_length`")
    request, memory = _planned(request, checkpoint, config, documents)
    return Prepared(
        request, pulled, checkpoint, config, tokenizer, documents, held_out, report, eval_report,
        memory, (*files, *eval_files),
    )  # fmt: skip


def _base(request: FinetuneRequest, pulled: Pulled) -> OpenedModel:
    adapter = None if request.adapter is None else open_adapter(request.adapter)
    return OpenedModel(request.model, pulled, adapter)


def _planned(
    request: FinetuneRequest, checkpoint: Checkpoint, config: ModelConfig, documents: list[Document]
) -> tuple[FinetuneRequest, MemoryPlan]:
    """The request with its method chosen, and the memory it will take."""
    largest = _largest(request, documents)

    def plan(request: FinetuneRequest) -> MemoryPlan:
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


def _largest(request: FinetuneRequest, documents: list[Document]) -> tuple[int, int, int]:
    """(tokens, targets, longest document) of the largest batch there will be."""
    longest = max(map(len, documents))
    room = request.max_length if request.packing else longest
    tokens = min(request.train.batch_size * room, sum(map(len, documents)))
    share = sum(d.targets for d in documents) / sum(map(len, documents))
    return tokens, max(1, round(tokens * share)), longest
