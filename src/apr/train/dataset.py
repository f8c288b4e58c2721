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
from apr.data.training_rows import BadRow, recognise
from apr.text import Tokenizer
from apr.train.examples import LeftOut, learned_of
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
# How many rows are named of each reason, and how many reasons.
NAMED, REASONS = 20, 10
# A row's text to documents, and what became of them ("PSM", "left to right"), for the account.
Transform = Callable[[str, np.random.Generator], tuple[list[Document], list[str]]]


@dataclass
class DataReport:
    """rows: read. kept: rows that give documents. truncated: rows cut at the end. split: rows in
    several documents. dropped: reason -> rows; named: reason -> file and line of the first of
    them. unused: column -> rows that say something there which is not learned from. lost: what of
    the rows kept is not learned -> turns. forms: what a transform made of plain text -> documents.
    benchmarks: benchmark -> rows that say they were made from it. tokens: of all documents;
    trained: of these, with a loss. sizes: documents of each row kept.
    """

    rows: int = 0
    kept: int = 0
    documents: int = 0
    truncated: int = 0
    split: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    benchmarks: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    trained: int = 0
    sizes: list[int] = field(default_factory=list, repr=False)

    def drop(self, reason: str, where: str) -> None:
        """Count a row that gives nothing."""
        self.dropped[reason] += 1
        named = self.named.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(where)

    def reason(self, reason: str) -> str:
        """Why rows were left out, and which."""
        more = self.dropped[reason] - len(self.named[reason])
        others = f" and {more} more" if more else ""
        return f"{reason}: {places(self.named[reason])}{others}"

    def to_json(self) -> dict[str, Any]:
        known = {key: value for key, value in vars(self).items() if key != "sizes"}
        return {key: dict(v) if isinstance(v, dict) else v for key, v in known.items()}

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
        found += [f"not learned, {count} turns: {what}" for what, count in self.lost.most_common()]
        if self.unused:
            found.append(f"columns that are not used: {', '.join(self.unused)}")
        return found + [
            f"dropped {count}: {self.reason(reason)}"
            for reason, count in self.dropped.most_common()
        ]


def read_documents(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    columns: Mapping[str, str] | None = None,
    chat: bool = False,
    skip_bad_rows: bool = False,
    transform: Transform | None = None,
    seed: int = 0,
) -> tuple[list[Document], DataReport]:
    """All rows of files (see `apr.data.training_rows`) as documents.

    max_length: longer documents are cut at their end, plain text into several. columns: as for
    `recognise`. skip_bad_rows: leave out rows that cannot be learned from, counted, instead of
    refusing the data. transform: applied to rows of plain text, with a generator that depends on
    seed and row.
    Raises UsageError naming file and line of the rows that cannot be learned from (not JSON,
    unknown columns, an empty response), of each reason the first 20.
    """

    def make(fields: Mapping[str, Any], report: DataReport) -> tuple[list[Document], bool]:
        row = recognise(fields, "", columns)
        if row.rejected:
            raise LeftOut("labelled as a bad answer")
        text = row.shape == "text"
        if transform is not None and text:
            random = np.random.default_rng([seed, 2, report.rows])
            wholes, forms = transform(row.response, random)
            report.forms.update(forms)
        else:
            learned = learned_of(row, tokenizer, chat=chat)
            wholes = learned.documents
            report.lost.update(learned.lost)
        pieces = [piece for whole in wholes for piece in _fitting(whole, max_length, text)]
        report.split += len(pieces) > 1
        report.unused.update(row.unused)
        return pieces, not text and sum(map(len, pieces)) < sum(map(len, wholes))

    return read_examples(files, make, max_length, skip_bad_rows)


def read_examples(
    files: Sequence[Path],
    make: Callable[[Mapping[str, Any], DataReport], tuple[list[E], bool]],
    max_length: int,
    skip_bad_rows: bool,
) -> tuple[list[E], DataReport]:
    """Every row as what `make` makes of it (none where nothing fits; whether something was cut).

    make may raise BadRow, LeftOut for a row that is no error. Raises UsageError as
    `read_documents` does.
    """
    examples: list[E] = []
    report = DataReport()
    bad: list[str] = []
    for where, row in _rows(files, report):
        try:
            if isinstance(row, str):
                raise BadRow(row)
            made, cut = make(row, report)
            if not made:
                raise LeftOut(f"nothing to learn within {max_length} tokens")
        except BadRow as error:
            report.drop(str(error), where)
            if not isinstance(error, LeftOut):
                bad.append(str(error))
            continue
        report.kept += 1
        report.truncated += cut
        if not isinstance(row, str) and isinstance(row.get("benchmark"), str):
            report.benchmarks[row["benchmark"]] += 1
        examples += made
        report.sizes.append(len(made))
    if bad and not skip_bad_rows:
        raise _refusal(report, bad)
    report.documents = len(examples)
    report.tokens = sum(map(len, examples))
    report.trained = sum(example.targets for example in examples)
    return examples, report


def split_off(
    examples: Sequence[E], sizes: Sequence[int], fraction: float, seed: int
) -> tuple[list[E], list[E]]:
    """(for training, for evaluation): a part of the rows drawn at random, the order otherwise kept.

    sizes: how many examples each row gave, in their order; they stay together, since one holds the
    beginning of another.
    """
    count = round(fraction * len(sizes))
    drawn = np.zeros(len(sizes), bool)
    drawn[np.random.default_rng([seed, 1]).permutation(len(sizes))[:count]] = True
    held_out = np.repeat(drawn, sizes)
    train = [example for example, held in zip(examples, held_out, strict=True) if not held]
    return train, [example for example, held in zip(examples, held_out, strict=True) if held]


def _rows(
    files: Sequence[Path], report: DataReport
) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """(file and line, row, or what is wrong with the line); all counted."""
    broken: list[UsageError] = []
    for path in files:
        before = report.rows
        for where, row in read_fields(path, broken.append):
            yield from _broken(broken, path, report)
            report.rows += 1
            yield where, row
        yield from _broken(broken, path, report)
        if report.rows == before:
            raise UsageError(f"{path} holds no rows")


def _broken(found: list[UsageError], path: Path, report: DataReport) -> Iterator[tuple[str, str]]:
    for error in found:
        report.rows += 1
        line, number, reason = error.message.removeprefix(f"{path} ").split(" ", 2)
        yield f"{path} {line} {number}", f"it {reason}"
    found.clear()


def _refusal(report: DataReport, bad: Sequence[str]) -> UsageError:
    hint = "mend the row, or `skip_bad_rows` leaves such rows out"
    reasons = list(dict.fromkeys(bad))
    if len(bad) == 1:
        return UsageError(f"{report.named[bad[0]][0]}: {bad[0]}", hint)
    named = "; ".join(report.reason(reason) for reason in reasons[:REASONS])
    more = f"; and {len(reasons) - REASONS} more reasons" if len(reasons) > REASONS else ""
    return UsageError(
        f"{len(bad)} of {report.rows} rows cannot be learned from: {named}{more}",
        hint.replace("row,", "rows,"),
    )


def places(where: Sequence[str]) -> str:
    """ "FILE line 2", "FILE line 7" as "FILE line 2, 7"."""
    found: dict[str, list[str]] = {}
    for one in where:
        file, _, number = one.rpartition(" ")
        found.setdefault(file, []).append(number)
    return "; ".join(f"{file} {', '.join(numbers)}" for file, numbers in found.items())


def _fitting(document: Document, room: int, anywhere: bool) -> list[Document]:
    """Pieces of at most `room` tokens that have something to learn. anywhere: keep all pieces."""
    starts = range(0, len(document), room) if anywhere else [0]
    pieces = [Document(document.ids[i : i + room], document.trained[i : i + room]) for i in starts]
    return [piece for piece in pieces if piece.targets]
