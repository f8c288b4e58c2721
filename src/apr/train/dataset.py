"""Training data from files: documents, and an account of what was kept, cut and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apr.errors import UsageError
from apr.eval.rows import read_rows
from apr.text import Tokenizer
from apr.train.examples import BadRow, document_of, is_text
from apr.train.packing import Document

# How many rows are named one by one.
NAMED = 20
# A row's text before it is cut into tokens; ids (all of them learned) instead of the text, or None.
Transform = Callable[[str, np.random.Generator], Sequence[int] | None]


@dataclass
class DataReport:
    """rows: read. kept: rows that give documents. truncated: rows cut at the end. split: rows of
    plain text in several documents. dropped: reason -> rows. named: "file line n: reason" of the
    first rows that were dropped. tokens: of all documents; trained: of these, with a loss.
    """

    rows: int = 0
    kept: int = 0
    documents: int = 0
    truncated: int = 0
    split: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    tokens: int = 0
    trained: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "dropped": dict(self.dropped)}

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"{self.rows} rows: {self.kept} kept, {self.truncated} truncated,"
            f" {sum(self.dropped.values())} dropped; {self.documents} documents of"
            f" {self.tokens} tokens, {self.trained} with loss"
        ]
        found += [f"dropped {count}: {reason}" for reason, count in self.dropped.most_common()]
        return found + [f"dropped: {where}" for where in self.named]


def read_documents(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    chat: bool = False,
    skip_bad_rows: bool = False,
    transform: Transform | None = None,
    seed: int = 0,
) -> tuple[list[Document], DataReport]:
    """All rows of JSONL files (plain or gzipped; .json is one array) as documents.

    max_length: longer documents are cut at their end, plain text into several. skip_bad_rows:
    leave out rows that cannot be learned from, counted, instead of refusing the file. transform:
    applied to rows of plain text, with a generator that depends on seed and row.
    Raises UsageError naming file and line (not JSON, unknown keys, an empty response).
    """
    documents: list[Document] = []
    report = DataReport()
    for path, number, row in _rows(files):
        report.rows += 1
        where = f"{path} line {number}"
        try:
            whole = _transformed(row, transform, seed, report.rows)
            if whole is None:
                whole = document_of(row, tokenizer, chat=chat)
        except BadRow as error:
            if not skip_bad_rows:
                hint = "mend the row, or --skip-bad-rows leaves such rows out"
                raise UsageError(f"{where}: {error}", hint) from None
            _drop(report, str(error), where)
            continue
        pieces = _fitting(whole, max_length, is_text(row))
        if not pieces:
            _drop(report, f"nothing to learn within {max_length} tokens", where)
            continue
        report.kept += 1
        report.split += len(pieces) > 1
        report.truncated += sum(map(len, pieces)) < len(whole) and not is_text(row)
        documents += pieces
    report.documents = len(documents)
    report.tokens = sum(map(len, documents))
    report.trained = sum(document.targets for document in documents)
    return documents, report


def split_off(
    documents: Sequence[Document], fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """(for training, for evaluation): a part drawn at random, the order otherwise kept."""
    count = round(fraction * len(documents))
    drawn = set(np.random.default_rng([seed, 1]).permutation(len(documents))[:count].tolist())
    train = [d for i, d in enumerate(documents) if i not in drawn]
    return train, [d for i, d in enumerate(documents) if i in drawn]


def _rows(files: Sequence[Path]) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
    for path in files:
        count = 0
        for number, row in read_rows(path):
            count += 1
            yield path, number, row
        if not count:
            raise UsageError(f"{path} holds no rows")


def _transformed(
    row: Mapping[str, Any], transform: Transform | None, seed: int, number: int
) -> Document | None:
    if transform is None or not is_text(row):
        return None
    text = row.get("text", row.get("content"))
    if not isinstance(text, str) or not text.strip():
        return None
    ids = transform(text, np.random.default_rng([seed, 2, number]))
    if ids is None:
        return None
    return Document(np.array(ids, np.int32), np.ones(len(ids), bool))


def _fitting(document: Document, room: int, anywhere: bool) -> list[Document]:
    """Pieces of at most `room` tokens that have something to learn. anywhere: keep all pieces."""
    starts = range(0, len(document), room) if anywhere else [0]
    pieces = [Document(document.ids[i : i + room], document.trained[i : i + room]) for i in starts]
    return [piece for piece in pieces if piece.targets]


def _drop(report: DataReport, reason: str, where: str) -> None:
    report.dropped[reason] += 1
    if len(report.named) < NAMED:
        report.named.append(f"{where}: {reason}")
