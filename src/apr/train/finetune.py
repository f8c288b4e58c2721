"""`apr finetune`: from a request to a trained adapter or model in a folder.

OUT/            the adapter (PEFT's files) or model, the best by evaluation where there is one
OUT/run.json    what was asked for; the same request again goes on where it stopped
OUT/loss.png    training and held-out losses, where matplotlib is installed
OUT/report.md, OUT/report.json   perplexity and an answer before and after; see `apr.train.report`
OUT/scores/   of benchmarks, before and after; see `apr.train.scores`
OUT/metrics.jsonl, OUT/checkpoints/, OUT/best/, OUT/last/   see `apr.train.loop`
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint import Checkpoint, CheckpointWriter, open_checkpoint
from apr.checkpoint.adapter import open_adapter
from apr.checkpoint.source import read_json_object
from apr.convert.dtypes import DTYPES
from apr.convert.folders import exact_source, files_from_folder, refuse_overlap
from apr.convert.import_checkpoint import files_from_gguf
from apr.convert.manifest import MANIFEST_NAME, folder_manifest
from apr.errors import UsageError
from apr.heap import return_free_memory, return_large_blocks
from apr.hub import Pulled, pull
from apr.hub.checksums import file_records, file_sha256
from apr.hub.datasets import local_files
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.opened import OpenedModel, open_model
from apr.model.transformer import Transformer
from apr.text import Tokenizer, fim_file, fim_format, load_tokenizer
from apr.train.adapter_files import load_adapter, save_adapter
from apr.train.base import METHODS, base_size, check_base, load_base, training_device
from apr.train.dataset import DataReport, read_documents, split_off
from apr.train.fim import FimSettings, fim_transform
from apr.train.forward import attention_note, token_loss
from apr.train.loop import CHECKPOINTS, METRICS, Task, TrainReport, total_steps, train
from apr.train.lora import LoraSettings, add_lora
from apr.train.packing import Batch, Document, PackedData
from apr.train.plan import MemoryPlan, plan_memory
from apr.train.report import Shown, fits, sample_before, write_report
from apr.train.reporting import PICTURE, draw_losses, reporting
from apr.train.run_folder import is_complete, open_run, publish
from apr.train.settings import TrainSettings
from apr.train.state import saved_states
from apr.train.zeros import check_zeros, keep_zeros

# What --method auto tries, in this order: (method, recompute).
AUTO = (("lora", False), ("lora", True), ("qlora", False), ("qlora", True))


@dataclass(frozen=True)
class FinetuneRequest:
    """model: any reference. data, eval_data: files of rows, or hf://datasets/...; eval_split: part
    of the documents held out instead. adapter: PEFT folder to train on. dtype: of weights and
    activations; what is trained is kept in fp32. max_length: tokens of a sequence. recompute: run
    layers again in the backward pass instead of keeping what they computed. keep_mask: weights of
    the layers' matrices that are zero (a pruned model's) stay zero. memory: bytes that method
    "auto" may plan with; it is the first of `AUTO` that fits.
    """

    model: str
    data: tuple[str | Path, ...]
    method: str = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    adapter: Path | None = None
    eval_data: tuple[str | Path, ...] = ()
    eval_split: float = 0.0
    dtype: str = "bf16"
    max_length: int = 512
    packing: bool = True
    chat: bool = False
    skip_bad_rows: bool = False
    recompute: bool = False
    keep_mask: bool = False
    memory: int | None = None
    fim: FimSettings = field(default_factory=FimSettings)

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, "auto"):
            known = ", ".join(METHODS)
            raise UsageError(f"--method {self.method} is unknown", f"one of {known}, auto")
        if (self.memory is not None) != (self.method == "auto"):
            raise UsageError("--method auto and --memory go together", "--memory 8GB")
        if self.dtype not in ("bf16", "fp32"):
            raise UsageError(f"--dtype {self.dtype} is unknown", "bf16 or fp32")
        if self.max_length < 2:
            raise UsageError(f"--max-seq-len is {self.max_length}", "it must be 2 or more")
        if not 0 <= self.eval_split < 1:
            raise UsageError(f"--eval-split is {self.eval_split}", "0 or more, below 1")
        if self.eval_split and self.eval_data:
            raise UsageError("--eval-split and --eval-data exclude each other", "choose one")
        if self.train.patience is not None and not (self.eval_split or self.eval_data):
            raise UsageError(
                "--patience without held-out data", "--eval-split 0.05, or --eval-data FILE"
            )
        if self.adapter is not None and self.method == "full":
            raise UsageError("--adapter is trained by --method lora or qlora only")
        if self.keep_mask:
            _check_keep_mask(self)

    @property
    def little_memory(self) -> bool:
        """Whether memory counts more than the last bit of speed: see `apr.heap`."""
        return self.recompute or self.method == "qlora"

    def to_json(self) -> dict[str, Any]:
        """What the result depends on, as plain data."""
        return json.loads(json.dumps(asdict(self), default=str))


def _check_keep_mask(request: FinetuneRequest) -> None:
    for flag, given in (("--dora", request.lora.dora), ("--lora-dropout", request.lora.dropout)):
        if given and request.method != "full":
            raise UsageError(f"--keep-mask does not go with {flag}", f"leave out {flag}")


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
        request = self.request
        settings = request.train
        return PackedData(
            self.documents, request.max_length, settings.batch_size, settings.seed, request.packing
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
        raise UsageError("no training data", "--data FILE.jsonl")
    pulled = pull(request.model, offline=offline, progress=progress)
    checkpoint = open_checkpoint(pulled.path)
    config = config_from_checkpoint(checkpoint)
    if request.adapter is not None:
        _ = _base(request, pulled).checkpoint  # which checks that it fits
    if request.max_length > config.max_position:
        raise UsageError(
            f"--max-seq-len {request.max_length} is beyond the model's context",
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
        raise UsageError("--fim-rate: no row is plain text", "rows of {text} are filled in")
    held_out: list[Document] = []
    eval_report = None
    if request.eval_data:
        held_out, eval_report = read_documents(eval_files, tokenizer, request.max_length, **options)
    elif request.eval_split:
        documents, held_out = split_off(documents, request.eval_split, seed)
        if not held_out:
            raise UsageError(
                f"--eval-split {request.eval_split} of {len(documents)} documents is none",
                "a larger part, or --eval-data",
            )
    if not documents:
        raise UsageError(f"{request.data[0]}: no row is left to learn from", "see --max-seq-len")
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
                           request.recompute, largest, request.adapter)  # fmt: skip

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
        f"--memory {request.memory / 1e9:.1f} GB is too little: {(least or 0) / 1e9:.1f} GB are"
        " needed",
        "a smaller --batch-size or --max-seq-len",
    )


def _largest(request: FinetuneRequest, documents: list[Document]) -> tuple[int, int, int]:
    """(tokens, targets, longest document) of the largest batch there will be."""
    longest = max(map(len, documents))
    room = request.max_length if request.packing else longest
    tokens = min(request.train.batch_size * room, sum(map(len, documents)))
    share = sum(d.targets for d in documents) / sum(map(len, documents))
    return tokens, max(1, round(tokens * share)), longest


def finetune(
    prepared: Prepared,
    folder: str | Path,
    *,
    force: bool = False,
    on_log: Callable[[dict[str, Any]], None] = lambda line: None,
    report_to: str = "none",
) -> dict[str, Any]:
    """Train, or go on with a run that was stopped. Returns what `--json` prints.

    force: begin anew where the folder holds another run. report_to: see `reporting`.
    Raises UsageError (the folder is in the way), AprError (a loss that is not finite, a full disk).
    """
    request, target = prepared.request, Path(folder).expanduser()
    refuse_overlap(target, prepared.pulled.path)
    inputs = input_hashes(prepared)
    open_run(target, {**request.to_json(), "sha256": inputs}, force)
    shown = shown_sample(prepared)
    before = prepared.base

    def answer(model: OpenedModel) -> str | None:
        allowed = fits(model, request.dtype, prepared.memory)
        return shown.answer(model, request.dtype) if allowed else None

    sample = sample_before(shown, lambda: answer(before), target)
    report = _train(prepared, target, on_log, report_to)
    return_free_memory()
    publish(target / ("best" if report.best_epoch is not None else "last"), target)
    result = run_result(prepared, target, report)
    trained = {"model": request.model, "method": request.method, **result}
    write_report(target, trained, {**sample, "after": answer(trained_model(prepared, target))})
    write_manifest(prepared, target, inputs, result)
    return result


def finished_result(prepared: Prepared, folder: str | Path) -> dict[str, Any] | None:
    """What `finetune` returned, where the folder holds this very run at its end."""
    target = Path(folder).expanduser()
    if not is_complete(target, {**prepared.request.to_json(), "sha256": input_hashes(prepared)}):
        return None
    return read_json_object(target / MANIFEST_NAME)["settings"]["result"]


def input_hashes(prepared: Prepared) -> dict[str, str]:
    return {str(path): file_sha256(path) for path in prepared.files}


def trained_model(prepared: Prepared, target: Path) -> OpenedModel:
    """What a run has published."""
    if prepared.request.method == "full":
        return open_model(str(target))
    return OpenedModel(prepared.request.model, prepared.pulled, open_adapter(target))


def _train(
    prepared: Prepared, target: Path, on_log: Callable[[dict[str, Any]], None], report_to: str
) -> TrainReport:
    """The training itself; the model is gone when it is over."""
    request = prepared.request
    model = load_model(prepared)
    _make_trainable(model, request)
    task = Task(
        model=model,
        parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
        step=lambda model, batch: (token_loss(model, batch, request.recompute), {}),
        data=_on(prepared.data, model.device),
        save=_saver(prepared, model),
        evaluate=evaluator(prepared, model, model.device) if prepared.held_out else None,
        on_log=on_log,
    )
    return run_task(task, request.train, target, report_to)


def load_model(prepared: Prepared) -> Transformer:
    """The model to train, where it will be trained."""
    request = prepared.request
    if request.little_memory:
        return_large_blocks()
    dtype = DTYPES[request.dtype]
    how = (request.method, dtype, training_device(), request.keep_mask)
    return load_base(prepared.checkpoint, *how)


def shown_sample(prepared: Prepared) -> Shown:
    """The first document held out (or, without any, the first one) as a question and an answer."""
    document = (prepared.held_out or prepared.documents)[0]
    fim, tokenizer = prepared.request.fim, prepared.tokenizer
    middle = fim_format(tokenizer, fim.tokens).middle if fim.rate else ""
    return Shown(document, tokenizer, tokenizer.token_to_id(middle) if middle else None)


def run_task(task: Task[Any], settings: TrainSettings, target: Path, report_to: str) -> TrainReport:
    """Train with the metrics reported, and draw the losses in the end."""
    states = saved_states(target / CHECKPOINTS)
    first = int(states[-1].name.removeprefix("step-")) if states else 0
    with reporting(report_to, target, first) as tell:

        def on_log(line: dict[str, Any]) -> None:
            task.on_log(line)
            tell(line)

        report = train(replace(task, on_log=on_log), settings, target)
    draw_losses(target / METRICS, target / PICTURE)
    return report


def _make_trainable(model: Transformer, request: FinetuneRequest) -> None:
    if request.method == "full":
        for parameter in model.parameters():
            # Not a view of the file: what is trained is written to.
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
        if request.keep_mask:
            keep_zeros(model)
        return
    if request.keep_mask:
        check_zeros(model)
    if request.adapter is None:
        add_lora(model, request.lora, request.train.seed, request.keep_mask)
        return
    adapters = load_adapter(model, request.adapter, request.lora.dropout)
    if request.keep_mask and not any(adapter.keep_zeros for adapter in adapters):
        raise UsageError(
            f"--keep-mask: {request.adapter} was trained without it", "begin with a new adapter"
        )


def _on(data: PackedData, device: torch.device) -> PackedData:
    return PackedData(data.documents, data.room, data.batch_size, data.seed, data.packing, device)


def evaluator(prepared: Prepared, model: Transformer, device: torch.device) -> Callable[[], float]:
    """Mean loss of the model, as it is when this is called, on the documents held out."""
    request = prepared.request
    data = PackedData(
        prepared.held_out, request.max_length, request.train.batch_size, 0, request.packing, device
    )

    @torch.no_grad()
    def evaluate() -> float:
        loss, weight = 0.0, 0
        for group in data.batches(0):
            batch: Batch = data.load(group)
            loss += float(token_loss(model, batch))
            weight += batch.weight
        return loss / weight

    return evaluate


def _saver(prepared: Prepared, model: Transformer) -> Callable[[Path], None]:
    request = prepared.request
    fim = fim_file(request.fim.tokens)
    if request.method != "full":
        base = base_name(request.model)
        return lambda folder: save_adapter(model, folder, base, fim)
    if prepared.checkpoint.format == "gguf":
        files, _ = files_from_gguf(prepared.checkpoint, prepared.config, request.dtype)
    else:
        files = files_from_folder(prepared.checkpoint, request.dtype)
    files |= fim

    def save(folder: Path) -> None:
        with CheckpointWriter(folder, overwrite=True) as writer:
            for name, parameter in model.named_parameters():
                writer.add(name, parameter.detach())
            for name, content in files.items():
                writer.add_file(name, content)

    return save


def base_name(ref: str) -> str:
    """A model as adapter_config.json names it: org/name, or a folder's whole path."""
    path = Path(ref).expanduser()
    return str(path.resolve()) if path.exists() else ref.removeprefix("hf://")


def run_result(prepared: Prepared, target: Path, report: TrainReport) -> dict[str, Any]:
    """What `--json` prints of a run."""
    values = asdict(report)
    losses = values.pop("losses")
    return {
        "folder": str(target),
        **values,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "tokens_per_second": report.tokens / max(report.seconds, 1e-9),
        "trainable_parameters": prepared.memory.trainable,
        "data": prepared.report.to_json(),
        "metrics": str(target / METRICS),
    }


def write_manifest(
    prepared: Prepared, target: Path, inputs: dict[str, str], result: dict[str, Any]
) -> None:
    """The record that a run is complete. inputs: sha256 by file."""
    content = folder_manifest(
        "finetune",
        source=exact_source(prepared.pulled),
        inputs=file_records(prepared.pulled, threading.Event()),
        settings={**prepared.request.to_json(), "data_sha256": inputs, "result": result},
        tensors={},
        files={},
        notes=tuple(prepared.tokenizer.notes),
    )
    (target / MANIFEST_NAME).write_bytes(content)
