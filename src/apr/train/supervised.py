"""Supervised training: rows to documents, packed, and cross-entropy on what is to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.data.training_rows import column_names
from apr.model.transformer import Transformer
from apr.text import Tokenizer
from apr.train.dataset import DataReport, read_documents
from apr.train.examples import fim_transform
from apr.train.loop import Data, Objective
from apr.train.objective import supervised
from apr.train.packing import Document, PackedData
from apr.train.prepare import Learning, Prepared
from apr.train.train_settings import FinetuneRequest


def _read(
    request: FinetuneRequest, files: Sequence[Path], tokenizer: Tokenizer, held_out: bool
) -> tuple[list[Document], DataReport]:
    how: dict[str, Any] = {
        "columns": column_names(request.columns),
        "chat": request.chat,
        "skip_bad_rows": request.skip_bad_rows,
    }
    if request.fim.rate:
        how["transform"] = fim_transform(request.fim, tokenizer, request.max_length)
    if not held_out:
        how["seed"] = request.train.seed
    documents, report = read_documents(files, tokenizer, request.max_length, **how)
    if request.fim.rate and not report.forms and not held_out:
        raise UsageError("`rate`: no row is plain text", "rows of {text} are filled in")
    return documents, report


def _data(request: FinetuneRequest, documents: Sequence[Document], seed: int) -> PackedData:
    return PackedData(
        documents, request.max_length, request.train.batch_size, seed, request.packing
    )


def _room(request: FinetuneRequest, documents: Sequence[Document]) -> int:
    longest = max(map(len, documents))
    return request.train.batch_size * (request.max_length if request.packing else longest)


def _objective(
    prepared: Prepared[Document], model: Transformer
) -> tuple[Objective[Any], Data[Any], Data[Any] | None]:
    data = [
        replace(each, device=model.device) if isinstance(each, PackedData) else None
        for each in (prepared.data, prepared.held_out_data)
    ]
    assert data[0] is not None
    return supervised(bool(prepared.request.recompute)), data[0], data[1]


SUPERVISED: Learning[Document] = Learning(
    "finetune", _read, _data, _room, _objective, lambda document: document
)
