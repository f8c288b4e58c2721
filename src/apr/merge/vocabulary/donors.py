"""Where each row of the output comes from, for every input model, and blocks read in that order.

Rows that a model lacks are filled as MergeKit does (see `plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray

from apr.common.errors import UsageError
from apr.merge.vocabulary.read import VocabularyInput, model_index
from apr.merge.vocabulary.vocabulary_settings import ModelToken, TokenEmbedding, ZeroEmbedding

# `fetch(model, rows)`: rows (int64 tensor (n,), may be empty) of an input's matrix, (n, width).
Fetch = Callable[[int, torch.Tensor], torch.Tensor]

# In the place of a model's index.
ZERO, AVERAGE, MEAN = -1, -2, -3
_MEAN_BLOCK = 8192


@dataclass(frozen=True)
class RowGather:
    """Where the rows of model `model` in the output's order come from. R: rows of the output.

    donor: int64 (R,), the input whose row is taken, or
        ZERO     zeros,
        AVERAGE  the average of the rows that the inputs have (`table`),
        MEAN     the mean of this model's token rows: padding that no input has.
    index: int64 (R,), the donor's row (of no meaning where there is no single donor).
    table: int64 (inputs, R), every input's own row, -1 where it has none.
    is_token: bool (R,), whether a token of the output has this id.
    """

    model: int
    donor: NDArray[np.int64] = field(repr=False)
    index: NDArray[np.int64] = field(repr=False)
    table: NDArray[np.int64] = field(repr=False)
    is_token: NDArray[np.bool_] = field(repr=False)

    @property
    def is_identity(self) -> bool:
        """Whether output row i is the model's own row i throughout."""
        in_order = np.array_equal(self.index, np.arange(len(self.index)))
        return in_order and bool((self.donor == self.model).all())

    def rows(self, start: int, end: int, fetch: Fetch) -> torch.Tensor:
        """Rows start to end of the output, as this model has them: (end - start, width).

        fetch gives the same dtype and width for all models; the result has them too. Averages are
        computed in fp32 and the mean, which reads all token rows block by block, in fp64.
        """
        return self._take(np.arange(start, end), fetch)

    def _take(self, positions: NDArray[np.int64], fetch: Fetch) -> torch.Tensor:
        donor, index = self.donor[positions], self.index[positions]
        kinds = np.unique(donor)
        if len(kinds) == 1 and kinds[0] >= 0:
            return fetch(int(kinds[0]), torch.from_numpy(index))
        like = fetch(self.model, torch.empty(0, dtype=torch.int64))
        out = like.new_zeros((len(positions), like.shape[1]))
        for kind in kinds.tolist():
            if kind == ZERO:
                continue
            where = np.flatnonzero(donor == kind)
            if kind == AVERAGE:
                values = self._average(positions[where], fetch, like)
            elif kind == MEAN:
                values = self._mean(fetch, like)
            else:
                values = fetch(kind, torch.from_numpy(index[where]))
            out[torch.from_numpy(where)] = values.to(out.dtype)
        return out

    def _average(
        self, positions: NDArray[np.int64], fetch: Fetch, like: torch.Tensor
    ) -> torch.Tensor:
        owned = self.table[:, positions]
        total = like.new_zeros((len(positions), like.shape[1]), dtype=torch.float32)
        for model, rows in enumerate(owned):
            has = np.flatnonzero(rows >= 0)
            if len(has):
                total[torch.from_numpy(has)] += fetch(model, torch.from_numpy(rows[has])).float()
        return total / torch.from_numpy((owned >= 0).sum(0)).to(total)[:, None]

    def _mean(self, fetch: Fetch, like: torch.Tensor) -> torch.Tensor:
        tokens = np.flatnonzero(self.is_token)
        total = like.new_zeros(like.shape[1], dtype=torch.float64)
        for start in range(0, len(tokens), _MEAN_BLOCK):
            total += self._take(tokens[start : start + _MEAN_BLOCK], fetch).double().sum(0)
        return total / max(len(tokens), 1)


@dataclass(frozen=True)
class RowSources:
    """As in `RowGather`; donor and index for models that lack the row, or for all if forced."""

    table: NDArray[np.int64]
    donor: NDArray[np.int64]
    index: NDArray[np.int64]
    forced: NDArray[np.bool_]
    is_token: NDArray[np.bool_]

    def gather(self, model: int) -> RowGather:
        """The rows of input `model`: its own, where it has one and none is forced upon it."""
        own = (self.table[model] >= 0) & ~self.forced
        return RowGather(
            model=model,
            donor=np.where(own, model, self.donor),
            index=np.where(own, self.table[model], self.index),
            table=self.table,
            is_token=self.is_token,
        )


def row_sources(
    ids: Mapping[str, int],
    size: int,
    models: Sequence[VocabularyInput],
    owned: Sequence[Mapping[str, int]],
    owner: int,
    base: int | None,
) -> RowSources:
    """Every row by MergeKit's rules; rows without a token belong together by their place."""
    fitting = {token: i for token, i in ids.items() if i < size}
    at = np.fromiter(fitting.values(), np.int64, len(fitting))
    is_token = np.zeros(size, dtype=np.bool_)
    is_token[at] = True
    unused = np.flatnonzero(~is_token[: models[owner].embedding_rows])
    table = np.full((len(models), size), -1, dtype=np.int64)
    for row, own, model in zip(table, owned, models, strict=True):
        row[at] = np.fromiter(map(own.get, fitting, repeat(-1)), np.int64, len(fitting))
        spare = np.ones(max(size, model.embedding_rows), dtype=np.bool_)
        spare[model.embedding_rows :] = False
        spare[np.fromiter(own.values(), np.int64, len(own))] = False
        row[unused] = np.where(spare[unused], unused, -1)
    has = table >= 0
    count = has.sum(axis=0)
    donor = np.select([count == 0, count == 1], [ZERO, has.argmax(axis=0)], AVERAGE)
    if base is not None:
        donor = np.where(has[base], base, donor)
    donor[~is_token & (count == 0)] = MEAN
    index = np.take_along_axis(table, np.maximum(donor, 0)[None], axis=0)[0]
    return RowSources(
        table, donor.astype(np.int64), index, np.zeros(size, dtype=np.bool_), is_token
    )


def override(
    rows: RowSources,
    token: str,
    token_id: int,
    setting: TokenEmbedding,
    models: Sequence[VocabularyInput],
    owned: Sequence[Mapping[str, int]],
) -> None:
    """Write what the settings say about one token into `rows`."""
    source = setting.source
    if source is None:
        return
    if token_id >= len(rows.donor):
        raise UsageError(
            f"tokenizer.tokens.{token}: id {token_id} has no row in the output",
            f"remove it: the embedding has {len(rows.donor)} rows",
        )
    rows.forced[token_id] = setting.force
    if isinstance(source, ZeroEmbedding):
        rows.donor[token_id] = ZERO
        return
    model = model_index(models, source.model if isinstance(source, ModelToken) else source)
    if isinstance(source, ModelToken) and source.token_id is not None:
        row, name = source.token_id, f"row {source.token_id}"
        row = row if row < models[model].embedding_rows else -1
    else:
        name = source.token or "" if isinstance(source, ModelToken) else token
        row, name = owned[model].get(name, -1), f"token {name!r}"
    if row < 0:
        raise UsageError(
            f"tokenizer.tokens.{token}.source: {models[model].label} has no {name}",
            "name a model that has it",
        )
    rows.donor[token_id], rows.index[token_id] = model, row
