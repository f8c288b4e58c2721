"""`apr finetune`: from a request to a trained adapter or model in a folder.

OUT/            the adapter (PEFT's files) or model, the best by evaluation where there is one
OUT/run.json    what was asked for; the same request again goes on where it stopped
OUT/loss.png    training and held-out losses, where matplotlib is installed
OUT/report.md, OUT/report.json, OUT/scores/   before and after; see `apr.train.report`
OUT/metrics.jsonl, OUT/checkpoints/, OUT/best/, OUT/last/   see `apr.train.loop`
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apr.checkpoint import CheckpointWriter, open_checkpoint
from apr.checkpoint.adapter import open_adapter
from apr.checkpoint.dtypes import DTYPES
from apr.checkpoint.model_folder import (
    MANIFEST_NAME,
    exact_source,
    files_from_folder,
    folder_manifest,
    refuse_overlap,
)
from apr.checkpoint.tensors import read_json_object
from apr.common.errors import UsageError
from apr.common.memory import return_free_memory, return_large_blocks
from apr.convert.import_checkpoint import files_from_gguf
from apr.hub.resolve import file_records, file_sha256
from apr.model.opened import OpenedModel, open_model
from apr.model.transformer import Transformer
from apr.text import fim_file, fim_format
from apr.train.adapter_files import load_adapter, save_adapter
from apr.train.base import load_base, training_device
from apr.train.loop import METRICS, Training, TrainReport, train
from apr.train.lora import add_lora
from apr.train.metrics import PICTURE, draw_losses, mean_ends, measured, reporting
from apr.train.prepare import Prepared
from apr.train.report import Shown, fits, sample_before, write_report
from apr.train.run_folder import CHECKPOINTS, is_complete, open_run, publish, saved_states
from apr.train.train_settings import RunSettings
from apr.train.zeros import check_zeros, keep_zeros


def finetune(
    prepared: Prepared[Any],
    folder: str | Path,
    *,
    force: bool = False,
    on_log: Callable[[dict[str, Any]], None] = lambda line: None,
    on_note: Callable[[str], None] = lambda note: None,
    report_to: str = "none",
) -> dict[str, Any]:
    """Train, or go on with a run that was stopped. Returns what `--json` prints.

    force: begin anew where the folder holds another run. on_note: told where a run goes on.
    report_to: see `reporting`.
    Raises UsageError (the folder is in the way), AprError (a loss that is not finite, a full disk).
    """
    request, target = prepared.request, Path(folder).expanduser()
    refuse_overlap(target, prepared.pulled.path)
    inputs = _input_hashes(prepared)
    if open_run(target, {**request.to_json(), "sha256": inputs}, force):
        on_note(f"{target} holds this run: {where_it_goes_on(target)}")
    shown = _shown_sample(prepared)

    def answer(model: OpenedModel) -> str | None:
        allowed = fits(model, request.dtype, prepared.memory)
        return shown.answer(model, request.dtype) if allowed else None

    sample = sample_before(shown, lambda: answer(prepared.base), target)
    return_free_memory()
    report = _train(prepared, target, on_log, report_to)
    return_free_memory()
    publish(target / ("best" if report.best_epoch is not None else "last"), target)
    result = _run_result(prepared, target, report)
    trained = {"model": request.model, "method": request.method, **result}
    write_report(target, trained, {**sample, "after": answer(_trained_model(prepared, target))})
    _write_manifest(prepared, target, inputs, result)
    return result


def where_it_goes_on(target: Path) -> str:
    """What becomes of a run that is in the folder, in words."""
    step = _saved_step(target)
    return (
        "it ended before its first checkpoint, and begins anew"
        if step is None
        else (f"it goes on from its checkpoint at step {step}")
    )


def _saved_step(target: Path) -> int | None:
    """Of the newest checkpoint."""
    states = saved_states(target / CHECKPOINTS)
    return int(states[-1].name.removeprefix("step-")) if states else None


def finished_result(prepared: Prepared[Any], folder: str | Path) -> dict[str, Any] | None:
    """What `finetune` returned, where the folder holds this very run at its end."""
    target = Path(folder).expanduser()
    if not is_complete(target, {**prepared.request.to_json(), "sha256": _input_hashes(prepared)}):
        return None
    return read_json_object(target / MANIFEST_NAME)["settings"]["result"]


def _input_hashes(prepared: Prepared[Any]) -> dict[str, str]:
    return {str(path): file_sha256(path) for path in prepared.files}


def _trained_model(prepared: Prepared[Any], target: Path) -> OpenedModel:
    """What a run has published."""
    if prepared.request.method == "full":
        return open_model(str(target))
    return OpenedModel(prepared.request.model, prepared.pulled, open_adapter(target))


def _train(
    prepared: Prepared[Any], target: Path, on_log: Callable[[dict[str, Any]], None], report_to: str
) -> TrainReport:
    """The training itself; the model is gone when it is over."""
    request = prepared.request
    model = _load_model(prepared)
    _make_trainable(model, request)
    with reporting(report_to, target, _saved_step(target) or 0) as tell:

        def log(line: dict[str, Any]) -> None:
            on_log(line)
            tell(line)

        objective, data, held_out = prepared.learning.objective(prepared, model)
        training = Training(
            model=model,
            parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
            objective=objective,
            data=data,
            save=_saver(prepared, model),
            held_out=held_out,
            on_log=log,
            nats=prepared.learning.nats,
        )
        report = train(training, request.train, target)
    unit = "nats per token" if prepared.learning.nats else "loss"
    draw_losses(target / METRICS, target / PICTURE, unit)
    return report


def _load_model(prepared: Prepared[Any]) -> Transformer:
    """The model to train, where it will be trained.

    Its file is mapped anew: pages that training read are this process's until their map is gone,
    and the answer after it needs that room.
    """
    request = prepared.request
    if request.little_memory:
        return_large_blocks()
    dtype = DTYPES[request.dtype]
    how = (request.method, dtype, training_device(), request.keep_mask)
    return load_base(open_checkpoint(prepared.pulled.path), *how)


def _shown_sample(prepared: Prepared[Any]) -> Shown:
    """The first document held out (or, without any, the first one) as a question and an answer."""
    document = prepared.learning.shown((prepared.held_out or prepared.examples)[0])
    fim, tokenizer = prepared.request.infilling, prepared.tokenizer
    middle = fim_format(tokenizer, fim.tokens).middle if fim.rate else ""
    return Shown(document, tokenizer, tokenizer.token_to_id(middle) if middle else None)


def _make_trainable(model: Transformer, request: RunSettings) -> None:
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
            f"`keep_mask`: {request.adapter} was trained without it", "begin with a new adapter"
        )


def _saver(prepared: Prepared[Any], model: Transformer) -> Callable[[Path], None]:
    request = prepared.request
    fim = fim_file(prepared.request.infilling.tokens)
    if request.method != "full":
        base = _base_name(request.model)
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


def _base_name(ref: str) -> str:
    """A model as adapter_config.json names it: org/name, or a folder's whole path."""
    path = Path(ref).expanduser()
    return str(path.resolve()) if path.exists() else ref.removeprefix("hf://")


def _run_result(prepared: Prepared[Any], target: Path, report: TrainReport) -> dict[str, Any]:
    """What `--json` prints of a run."""
    values = asdict(report)
    losses = values.pop("losses")
    return {
        "folder": str(target),
        **values,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        **mean_ends(losses),
        "tokens_per_second": report.tokens / max(report.seconds, 1e-9),
        "trainable_parameters": prepared.memory.trainable,
        "nats": prepared.learning.nats,
        "measures": measured(target / METRICS),
        "data": prepared.report.to_json(),
        "metrics": str(target / METRICS),
    }


def _write_manifest(
    prepared: Prepared[Any], target: Path, inputs: dict[str, str], result: dict[str, Any]
) -> None:
    """The record that a run is complete. inputs: sha256 by file."""
    content = folder_manifest(
        prepared.learning.command,
        source=exact_source(prepared.pulled),
        inputs=file_records(prepared.pulled, threading.Event()),
        settings={**prepared.request.to_json(), "data_sha256": inputs, "result": result},
        tensors={},
        files={},
        notes=tuple(prepared.tokenizer.notes),
    )
    (target / MANIFEST_NAME).write_bytes(content)
