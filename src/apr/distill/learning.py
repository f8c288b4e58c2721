"""Distillation as `apr.train.finetune` runs it: batches with what the teacher says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from apr.distill.distill_settings import DistillRequest, DistillSettings
from apr.distill.teacher import Kept, cached, find_teacher, kept_target, live_target
from apr.kernels.distillation import Target, distillation_loss
from apr.kernels.logprobs import token_logprobs
from apr.model.transformer import Transformer
from apr.text import Tokenizer
from apr.train.dataset import DataReport
from apr.train.loop import Data, Objective
from apr.train.objective import hidden_states, output_factors
from apr.train.packing import MULTIPLE, Batch, Document, PackedData, make_batch
from apr.train.prepare import Learning, Prepared
from apr.train.supervised import SUPERVISED


@dataclass(frozen=True)
class TaughtBatch:
    """packed: documents. kept: what the cache has of each, in their order; () where it is asked."""

    packed: Batch
    kept: tuple[Kept, ...] = ()

    @property
    def weight(self) -> int:
        return self.packed.weight

    @property
    def tokens(self) -> int:
        return self.packed.tokens

    def to_json(self) -> dict[str, Any]:
        return self.packed.to_json()


@dataclass(frozen=True)
class TaughtData:
    """Packed documents with what the teacher's cache says of them. difficulty: the teacher's loss
    of each; the first epoch goes from the easiest to the hardest then, later ones are shuffled.
    """

    packed: PackedData
    kept: Sequence[Kept] | None = None
    difficulty: Sequence[float] | None = None

    def batches(self, epoch: int) -> list[list[int]]:
        batches = self.packed.batches(epoch)
        if self.difficulty is None or epoch:
            return batches
        order = sorted(range(len(self.packed.documents)), key=self.difficulty.__getitem__)
        return _in_order(self.packed, order)

    def load(self, batch: Sequence[int]) -> TaughtBatch:
        chosen = [self.packed.documents[i] for i in batch]
        packed = make_batch(chosen, MULTIPLE).to(self.packed.device)
        kept = () if self.kept is None else tuple(self.kept[i] for i in batch)
        return TaughtBatch(packed, kept)


def _in_order(data: PackedData, order: Sequence[int]) -> list[list[int]]:
    """Documents in an order, as many to a batch as fit."""
    room = data.room * data.batch_size
    batches: list[list[int]] = []
    left = 0
    for index in order:
        size = len(data.documents[index]) if data.packing else data.room
        if size > left:
            batches.append([])
            left = room
        batches[-1].append(index)
        left -= size
    return batches


def _data(request: DistillRequest, documents: Sequence[Document], seed: int) -> TaughtData:
    return TaughtData(SUPERVISED.data(request, documents, seed))  # type: ignore[arg-type]


def _read(
    request: DistillRequest, files: Sequence[Path], tokenizer: Tokenizer, held_out: bool
) -> tuple[list[Document], DataReport]:
    return SUPERVISED.read(request, files, tokenizer, held_out)


def _objective(
    prepared: Prepared[Document], model: Transformer
) -> tuple[Objective[Any], Data[Any], Data[Any] | None]:
    request = prepared.request
    assert isinstance(request, DistillRequest)
    settings = request.distill
    found = [find_teacher(one, prepared.tokenizer, request.dtype) for one in request.teacher]
    loaded: list[Transformer] = []

    def teachers() -> list[Transformer]:
        if not loaded:
            loaded.extend(teacher.load(model.device) for teacher in found)
        return loaded

    parts: list[TaughtData | None] = []
    # Rows of an embedding beyond the tokenizer's ids mean nothing.
    vocabulary = min(model.config.vocab_size, prepared.tokenizer.vocab_size)
    for name, data in (("train", prepared.data), ("held-out", prepared.held_out_data)):
        if data is None:
            parts.append(None)
            continue
        assert isinstance(data, TaughtData)
        data = replace(data, packed=replace(data.packed, device=model.device))
        if settings.cache is not None:
            kept = cached(
                settings.cache / name, data.packed.documents, found[0], lambda: teachers()[0],
                temperature=settings.temperature, samples=settings.cache_samples,
                top_k=settings.cache_top_k, seed=request.train.seed, vocabulary=vocabulary,
            )  # fmt: skip
            data = replace(data, kept=kept)
        if settings.strategy == "progressive" and name == "train":
            data = replace(data, difficulty=_losses(teachers()[0], data.packed))
        parts.append(data)
    if settings.cache is not None:
        loaded.clear()  # it has said all it is asked for
    else:
        teachers()
    weights = settings.weights or (1.0,) * len(request.teacher)
    objective = distilled(settings, loaded, weights, vocabulary, bool(request.recompute))
    assert parts[0] is not None
    return objective, parts[0], parts[1]


def distilled(
    settings: DistillSettings,
    teachers: Sequence[Transformer],
    weights: Sequence[float],
    vocabulary: int,
    recompute: bool = False,
) -> Objective[TaughtBatch]:
    """What a step computes: see `distillation_loss`. Sums besides: divergence (nats, at the
    temperature) and nll (nats of the data's own tokens).
    """

    def objective(model: Transformer, batch: TaughtBatch) -> tuple[torch.Tensor, dict[str, float]]:
        packed = batch.packed
        target: Target
        if batch.kept:
            target = kept_target(batch.kept, vocabulary, model.device)
        else:
            target = live_target(teachers, weights, packed, settings.temperature, vocabulary)
        hidden, weight = output_factors(model, hidden_states(model, packed, recompute)[packed.rows])
        return distillation_loss(
            hidden, weight[:vocabulary], packed.labels, target, alpha=settings.teacher_weight,
            temperature=settings.temperature, divergence=settings.divergence,
            softcap=model.config.logit_softcap,
        )  # fmt: skip

    return objective


@torch.no_grad()
def _losses(teacher: Transformer, data: PackedData) -> list[float]:
    """The teacher's mean loss of each document, nats per token."""
    losses = []
    for document in data.documents:
        batch = make_batch([document]).to(teacher.device)
        factors = output_factors(teacher, hidden_states(teacher, batch)[batch.rows])
        losses.append(-float(token_logprobs(*factors, batch.labels).mean()))
    return losses


TAUGHT: Learning[Document] = Learning(
    "distill", _read, _data, SUPERVISED.room, _objective, SUPERVISED.shown, nats=False
)
