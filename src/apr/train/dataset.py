"""Training data from files: documents, and an account of what was kept, cut and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from apr.common.errors import UsageError
from apr.common.rows import read_fields
from apr.text import Tokenizer
from apr.train.examples import BadRow, document_of, is_text
from apr.train.packing import Document


class Example(Protocol):
    """What is asked of whatever a row becomes: how many tokens it has, how many are learned, and
    the longest stretch of tokens that see each other.
    """

    def __len__(self) -> int: ...
    @property
    def targets(self) -> int: ...
    @property
    def longest(self) -> int: ...


E = TypeVar("E", bound=Example)
# How many rows are named one by one.
NAMED = 20
# A row's text to documents, and what became of them ("PSM", "left to right"), for the account.
Transform = Callable[[str, np.random.Generator], tuple[list[Document], list[str]]]


@dataclass
class DataReport:
    """rows: read. kept: rows that give documents. truncated: rows cut at the end. split: rows of
    plain text in several documents. dropped: reason -> rows. named: "file line n: reason" of the
    first rows that were dropped. benchmarks: benchmark -> rows that say they were made from it.
    forms: what a transform made of plain text -> documents. tokens: of all documents; trained: of
    these, with a loss.
    """

    rows: int = 0
    kept: int = 0
    documents: int = 0
    truncated: int = 0
    split: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    benchmarks: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    trained: int = 0

    def to_json(self) -> dict[str, Any]:
        counters = {name: dict(getattr(self, name)) for name in ("dropped", "benchmarks", "forms")}
        return {**vars(self), **counters}

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"{self.rows} rows: {self.kept} kept, {self.truncated} truncated,"
            f" {sum(self.dropped.values())} dropped; {self.documents} documents of"
            f" {self.tokens} tokens, {self.trained} with loss"
        ]
        if self.forms:
            forms = (f"{count} {form}" for form, count in self.forms.most_common())
            found.append(f"fill-in-the-middle: {', '.join(forms)}")
        found += [f"{n} rows are made from {name}" for name, n in self.benchmarks.most_common()]
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
    """All rows of files (JSON lines, JSON, Parquet; see `apr.data.training_rows`) as documents.

    max_length: longer documents are cut at their end, plain text into several. skip_bad_rows:
    leave out rows that cannot be learned from, counted, instead of refusing the data. transform:
    applied to rows of plain text, with a generator that depends on seed and row.
    Raises UsageError naming file and line of every row that cannot be learned from (not JSON,
    unknown keys, an empty response); of more than 20, the first ones.
    """

    def make(row: Mapping[str, Any], report: DataReport) -> tuple[list[Document], bool]:
        wholes = _documents(row, tokenizer, chat, transform, seed, report)
        text = is_text(row)
        pieces = [piece for whole in wholes for piece in _fitting(whole, max_length, text)]
        report.split += len(pieces) > 1
        return pieces, not text and sum(map(len, pieces)) < sum(map(len, wholes))

    return read_examples(files, make, max_length, skip_bad_rows)


def read_examples(
    files: Sequence[Path],
    make: Callable[[Mapping[str, Any], DataReport], tuple[list[E], bool]],
    max_length: int,
    skip_bad_rows: bool,
) -> tuple[list[E], DataReport]:
    """Every row as what `make` makes of it (none where nothing fits; whether something was cut).

    make may raise BadRow. Raises UsageError as `read_documents` does.
    """
    examples: list[E] = []
    report = DataReport()
    bad: list[str] = []
    for where, row in _rows(files, report):
        if row is None:
            _drop(report, "no JSON object", where)
            bad.append(where)
            continue
        try:
            made, cut = make(row, report)
        except BadRow as error:
            _drop(report, str(error), f"{where}: {error}")
            bad.append(f"{where}: {error}")
            continue
        if not made:
            reason = f"nothing to learn within {max_length} tokens"
            _drop(report, reason, f"{where}: {reason}")
            continue
        report.kept += 1
        report.truncated += cut
        if isinstance(row.get("benchmark"), str):
            report.benchmarks[row["benchmark"]] += 1
        examples += made
    if bad and not skip_bad_rows:
        raise _refusal(bad, report.rows)
    report.documents = len(examples)
    report.tokens = sum(map(len, examples))
    report.trained = sum(example.targets for example in examples)
    return examples, report


def split_off(examples: Sequence[E], fraction: float, seed: int) -> tuple[list[E], list[E]]:
    """(for training, for evaluation): a part drawn at random, the order otherwise kept."""
    count = round(fraction * len(examples))
    drawn = set(np.random.default_rng([seed, 1]).permutation(len(examples))[:count].tolist())
    train = [example for i, example in enumerate(examples) if i not in drawn]
    return train, [example for i, example in enumerate(examples) if i in drawn]


def _rows(
    files: Sequence[Path], report: DataReport
) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """(file and line, row), or (what is wrong with a line, None); all counted."""
    broken: list[UsageError] = []
    for path in files:
        before = report.rows
        for where, row in read_fields(path, broken.append):
            yield from _broken(broken, report)
            report.rows += 1
            yield where, row
        yield from _broken(broken, report)
        if report.rows == before:
            raise UsageError(f"{path} holds no rows")


def _broken(found: list[UsageError], report: DataReport) -> Iterator[tuple[str, None]]:
    for error in found:
        report.rows += 1
        yield error.message, None
    found.clear()


def _refusal(bad: list[str], rows: int) -> UsageError:
    hint = "mend the row, or `skip_bad_rows` leaves such rows out"
    if len(bad) == 1:
        return UsageError(bad[0], hint)
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return UsageError(
        f"{len(bad)} of {rows} rows cannot be learned from: {'; '.join(bad[:NAMED])}{more}",
        hint.replace("row,", "rows,"),
    )


def _documents(
    row: Mapping[str, Any],
    tokenizer: Tokenizer,
    chat: bool,
    transform: Transform | None,
    seed: int,
    report: DataReport,
) -> list[Document]:
    text = row.get("text", row.get("content"))
    if transform is None or not is_text(row) or not isinstance(text, str):
        return [document_of(row, tokenizer, chat=chat)]
    found, forms = transform(text, np.random.default_rng([seed, 2, report.rows]))
    report.forms.update(forms)
    return found


def _fitting(document: Document, room: int, anywhere: bool) -> list[Document]:
    """Pieces of at most `room` tokens that have something to learn. anywhere: keep all pieces."""
    starts = range(0, len(document), room) if anywhere else [0]
    pieces = [Document(document.ids[i : i + room], document.trained[i : i + room]) for i in starts]
    return [piece for piece in pieces if piece.targets]


def _drop(report: DataReport, reason: str, named: str) -> None:
    report.dropped[reason] += 1
    if len(report.named) < NAMED:
        report.named.append(named)
