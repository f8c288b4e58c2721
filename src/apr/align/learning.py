"""Training on preferences, as `apr.train.finetune` runs it: rows, batches, reference, loss."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from apr.align.align_settings import AlignRequest
from apr.align.losses import preference
from apr.align.preferences import Preference, PreferenceData, read_preferences, with_probes
from apr.align.reference import reference_logprobs
from apr.checkpoint import open_checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.common.errors import UsageError
from apr.hub import pull
from apr.hub.resolve import file_records, file_sha256
from apr.model.transformer import Transformer
from apr.text import Tokenizer, load_tokenizer, vocabulary_difference
from apr.train.base import load_base
from apr.train.dataset import DataReport
from apr.train.loop import Data, Objective
from apr.train.prepare import Learning, Prepared


def _read(
    request: AlignRequest, files: Sequence[Path], tokenizer: Tokenizer, held_out: bool
) -> tuple[list[Preference], DataReport]:
    unpaired = request.preference.algorithm == "kto"
    return read_preferences(
        files, tokenizer, request.max_length, unpaired=unpaired, chat=request.chat,
        skip_bad_rows=request.skip_bad_rows,
    )  # fmt: skip


def _data(request: AlignRequest, preferences: Sequence[Preference], seed: int) -> PreferenceData:
    settings = request.preference
    unpaired = settings.algorithm == "kto"
    if unpaired:
        if len(preferences) < 2:
            raise UsageError(f"{request.data[0]}: kto compares with other rows", "give two or more")
        preferences = with_probes(preferences)
    over_prompts = settings.nll_over == "sequence"
    return PreferenceData(preferences, request.train.batch_size, seed, over_prompts, unpaired)


def _room(request: AlignRequest, preferences: Sequence[Preference]) -> int:
    return request.train.batch_size * max(map(len, preferences))


def _objective(
    prepared: Prepared[Preference], model: Transformer
) -> tuple[Objective[Any], Data[Any], Data[Any] | None]:
    request = prepared.request
    assert isinstance(request, AlignRequest)
    data, held_out = prepared.data, prepared.held_out_data
    parts = [replace(part, device=model.device) if part else None for part in (data, held_out)]  # type: ignore[type-var]
    if request.preference.uses_reference:
        parts = _with_reference(prepared, request, model, parts)
    assert parts[0] is not None
    return preference(request.preference, bool(request.recompute)), parts[0], parts[1]


def _with_reference(
    prepared: Prepared[Preference], request: AlignRequest, model: Transformer, parts: list[Any]
) -> list[Any]:
    """The same data with the reference's log-probabilities."""
    source = prepared.pulled if request.ref_model is None else pull(request.ref_model)
    form = request.method if request.ref_model is None else "lora"
    adapter = request.adapter if request.ref_model is None else None
    identity = {
        "files": [asdict(file) for file in file_records(source, threading.Event())],
        "adapter": [file_sha256(path) for path in sorted(adapter.glob("adapter_*"))]
        if adapter
        else None,
        "form": form,
        "dtype": request.dtype,
        "device": str(model.device),
    }
    loaded: list[Transformer] = []

    def reference() -> Transformer:
        if request.ref_model is None:
            return model
        if not loaded:
            tokenizer = load_tokenizer(source.path)
            difference = vocabulary_difference(prepared.tokenizer, tokenizer)
            if difference:
                raise UsageError(f"`ref_model` {request.ref_model}: {difference}")
            checkpoint = open_checkpoint(source.path)
            loaded.append(load_base(checkpoint, form, DTYPES[request.dtype], model.device))
        return loaded[0]

    return [
        part and replace(part, reference=reference_logprobs(part, identity, reference))
        for part in parts
    ]


PREFERENCES: Learning[Preference] = Learning(
    "align", _read, _data, _room, _objective, Preference.document, nats=False
)
