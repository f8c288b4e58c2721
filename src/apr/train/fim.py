"""Fill-in-the-middle training: documents cut in three, the middle moved to the end.

Bavarian et al. 2022 (arXiv:2207.14255), section 3: with probability `rate` a document is cut at
two places drawn uniformly among its characters, before tokens are made, and put in the order PSM
or SPM (their variant 2); every token of it is learned, the end above all. What the model's family
writes between the parts is `apr.text.fim`.

Levels:
    document   whole documents only; one that does not fit a sequence stays as it is (as Code
               Llama, arXiv:2308.12950, section 2.3), so no part of one is ever without the others
    context    documents are cut to fit sequences first, then each piece is transformed or not
               (Bavarian et al., section 4.4: better than cutting transformed documents)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from apr.common.errors import UsageError
from apr.text import FimFormat, FimOrder, Tokenizer, fim_format
from apr.train.examples import BadRow, encoded, text_document, with_end
from apr.train.packing import Document

Level = Literal["document", "context"]
# What the order, begin and end add to a piece, and what cutting it in three may: sentinels, an end,
# a begin; a token more at each cut and at the end of the last line.
ADDED = 8
# What became of a text, for the account of the data.
LEFT_TO_RIGHT, TOO_LONG = "left to right", "left to right, longer than a sequence"


@dataclass(frozen=True)
class FimSettings:
    """rate: part of the documents that are transformed; spm_rate: part of these that become SPM
    instead of PSM (None: one half, or 0 where the family knows PSM alone). tokens: for prefix,
    suffix and middle, where not those of the model's family.
    """

    rate: float = 0.0
    spm_rate: float | None = None
    level: Level = "document"
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for flag, value in (("--fim-rate", self.rate), ("--fim-spm-rate", self.spm_rate)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{flag} is {value}", "0 to 1")
        if self.level not in get_args(Level):
            raise UsageError(f"--fim-level {self.level} is unknown", "document or context")
        if self.tokens and not self.rate:
            raise UsageError("--fim-tokens without --fim-rate", "add --fim-rate 0.5, say")


def cut_in_three(text: str, random: np.random.Generator) -> tuple[str, str, str]:
    """(prefix, middle, suffix): two independent uniform places among the len(text) + 1 there are.

    Any part may be empty.
    """
    first, second = sorted(random.integers(0, len(text) + 1, 2).tolist())
    return text[:first], text[first:second], text[second:]


def draw_order(rate: float, spm_rate: float, random: np.random.Generator) -> FimOrder | None:
    """What becomes of a document; None: nothing."""
    if random.random() >= rate:
        return None
    return "spm" if random.random() < spm_rate else "psm"


def fim_transform(
    settings: FimSettings, tokenizer: Tokenizer, max_length: int
) -> Callable[[str, np.random.Generator], tuple[list[Document], list[str]]]:
    """What `read_documents` does with plain text: (text, random numbers) to documents of at most
    max_length tokens (or longer ones where nothing is transformed), and what became of them.

    Raises UsageError where the tokenizer lacks a token of the format.
    """
    form = fim_format(tokenizer, settings.tokens)
    form.training_ids(tokenizer, ("", "", ""), "psm")  # every token is there
    usual = 0.5 if "spm" in form.orders else 0.0
    spm_rate = usual if settings.spm_rate is None else settings.spm_rate

    def one(text: str, random: np.random.Generator) -> tuple[Document | None, str]:
        order = draw_order(settings.rate, spm_rate, random)
        parts = cut_in_three(text, random)
        if order is None:
            return None, LEFT_TO_RIGHT
        ids = _ids(form, tokenizer, parts, order)
        return (None, TOO_LONG) if len(ids) > max_length else (_learned(ids), order.upper())

    def transform(text: str, random: np.random.Generator) -> tuple[list[Document], list[str]]:
        whole = text_document(text, tokenizer)
        if settings.level == "document":
            found, kind = one(text, random)
            return [found or whole], [kind]
        documents, kinds = [], []
        pieces = list(pieces_that_fit(text, tokenizer, max(1, max_length - ADDED)))
        for number, piece in enumerate(pieces, 1):
            found, kind = one(piece, random)
            if found is None:
                ids = encoded(tokenizer, piece, special=number == 1)
                found = _learned(with_end(ids, tokenizer) if number == len(pieces) else ids)
            documents.append(found)
            kinds.append(kind)
        return documents, kinds

    return transform


def pieces_that_fit(text: str, tokenizer: Tokenizer, room: int) -> Iterator[str]:
    """A text in pieces of about `room` tokens at most, cut at line ends where lines fit."""
    piece, size = "", 0
    for line in text.splitlines(keepends=True):
        length = len(encoded(tokenizer, line))
        # A character is four tokens at most (its bytes).
        step = max(1, room // 4) if length > room else len(line)
        for part in (line[i : i + step] for i in range(0, len(line), step)):
            length = length if step == len(line) else len(encoded(tokenizer, part))
            if piece and size + length > room:
                yield piece
                piece, size = "", 0
            piece, size = piece + part, size + length
    if piece:
        yield piece


def _ids(
    form: FimFormat, tokenizer: Tokenizer, parts: tuple[str, str, str], order: FimOrder
) -> list[int]:
    try:
        return form.training_ids(tokenizer, parts, order)
    except UsageError as error:
        raise BadRow(error.message) from None


def _learned(ids: list[int]) -> Document:
    return Document(np.array(ids, np.int32), np.ones(len(ids), bool))
