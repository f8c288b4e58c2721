"""Where each row of the output comes from, for every input model.

Rows that a model lacks are filled as MergeKit does (see `plan`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from apr.common.errors import UsageError
from apr.merge.vocabulary.read import VocabularyInput, model_index
from apr.merge.vocabulary.rows import AVERAGE, MEAN, ZERO, RowGather
from apr.merge.vocabulary.settings import ModelToken, TokenEmbedding, ZeroEmbedding


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
