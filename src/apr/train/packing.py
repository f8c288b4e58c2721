"""Documents side by side in one sequence, none of which sees another.

A batch is ragged: the tokens of its documents one after another, without padding. Positions begin
anew with every document and attention stays inside it, so a document gets the gradient it would
get alone, whatever it is packed with.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

# Batches of few sizes leave an allocator few sizes of holes: without, memory grows for hundreds of
# steps.
MULTIPLE = 128


@dataclass(frozen=True)
class Document:
    """ids: int32 (n,). trained: bool (n,), True for tokens the model is to learn to write."""

    ids: np.ndarray
    trained: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Tokens with a loss: the first one follows nothing."""
        return int(self.trained[1:].sum())

    @property
    def longest(self) -> int:
        """Tokens that see each other."""
        return len(self)


@dataclass(frozen=True)
class Batch:
    """Documents of T tokens in all. ids, positions: int64 (T,). starts: where each document
    begins, and T. rows: int64 (n,), positions whose next token is learned; labels: int64 (n,),
    that token. filler: tokens at the end that belong to no document of the data.

    Documents that begin alike may share their beginning: then starts are those of whole documents
    (E tokens in all), attend_to: int64 (E,) is which of the T tokens each of theirs is, and
    attend_from: int64 (T,) where among the E the tokens are found.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: tuple[int, ...]
    rows: torch.Tensor
    labels: torch.Tensor
    filler: int = 0
    attend_to: torch.Tensor | None = None
    attend_from: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.filler

    @property
    def weight(self) -> int:
        """What its loss is a sum over."""
        return len(self.labels)

    def to_json(self) -> dict[str, Any]:
        """Everything, to look at or to run again."""
        return {
            "ids": self.ids.tolist(),
            "starts": list(self.starts),
            "rows": self.rows.tolist(),
            "labels": self.labels.tolist(),
        }

    def to(self, device: torch.device) -> Batch:
        return replace(self, **moved(self, device))


def moved(batch: Any, device: torch.device) -> dict[str, Any]:
    """The tensors of a dataclass, on a device."""
    values = vars(batch).items()
    return {name: value.to(device) for name, value in values if isinstance(value, torch.Tensor)}


def make_batch(documents: Sequence[Document], multiple: int = 1) -> Batch:
    """Documents, at least one, as one ragged batch.

    multiple: of the number of tokens; a last document without loss fills it up.
    """
    missing = -sum(map(len, documents)) % multiple
    if missing:
        filler = Document(np.zeros(missing, np.int32), np.zeros(missing, bool))
        documents = [*documents, filler]
    lengths = [len(document) for document in documents]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([document.ids for document in documents]).astype(np.int64)
    learned = np.concatenate([document.trained for document in documents])
    learned[starts[:-1]] = False  # follows the end of another document
    targets = np.flatnonzero(learned)
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts[:-1], lengths)),
        starts=tuple(int(start) for start in starts),
        rows=torch.from_numpy(targets - 1),
        labels=torch.from_numpy(ids[targets]),
        filler=missing,
    )


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Documents (by index) into sequences of at most `room` tokens: best fit, longest first.

    No length may exceed room. Best-fit decreasing needs at most 11/9 of the least possible number
    of sequences, and one more (Johnson 1974); usually a fraction of a percent is left empty.
    """
    sequences: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, sequence), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        at = bisect_left(free, (length, -1))
        if at == len(free):
            left, sequence = room, len(sequences)
            sequences.append([])
        else:
            left, sequence = free.pop(at)
        sequences[sequence].append(index)
        if left > length:
            insort(free, (left - length, sequence))
    return sequences


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """0 .. count - 1 in an order that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()


def epoch_batches(
    documents: Sequence[Document],
    room: int,
    batch_size: int,
    seed: int,
    epoch: int,
    packing: bool = True,
) -> list[list[int]]:
    """The documents (by index) of each batch of an epoch.

    room: tokens of a sequence. batch_size: sequences of a batch; the last batch may have fewer.
    Without packing a sequence is one document. What is packed together changes from epoch to
    epoch; everything follows from seed and epoch.
    """
    order = shuffled(len(documents), seed, epoch)
    if packing:
        packed = pack([len(documents[i]) for i in order], room)
        sequences = [[order[i] for i in sequence] for sequence in packed]
        sequences = [sequences[i] for i in shuffled(len(sequences), seed + 1, epoch)]
    else:
        sequences = [[i] for i in order]
    groups = (sequences[i : i + batch_size] for i in range(0, len(sequences), batch_size))
    return [[index for sequence in group for index in sequence] for group in groups]


@dataclass(frozen=True)
class PackedData:
    """Documents as the loop takes them (see `epoch_batches`)."""

    documents: Sequence[Document]
    room: int
    batch_size: int
    seed: int
    packing: bool = True
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a constant)

    def batches(self, epoch: int) -> list[list[int]]:
        return epoch_batches(
            self.documents, self.room, self.batch_size, self.seed, epoch, self.packing
        )

    def load(self, batch: Sequence[int]) -> Batch:
        chosen = [self.documents[i] for i in batch]
        return make_batch(chosen, MULTIPLE).to(self.device)
