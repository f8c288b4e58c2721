"""Calibration: token sequences of one length, drawn from texts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from apr.calibrate.texts import BUILTIN, load_text, source_files
from apr.common.errors import AprError, UsageError
from apr.text import Tokenizer

# Tokens drawn from for each one that is used, where the text has so many: variety for its price.
_CHOICE = 4


@dataclass(frozen=True)
class Calibration:
    """ids: int64 (sequences, tokens). notes: what the user should know of them."""

    ids: torch.Tensor
    sources: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()

    def to_json(self) -> dict[str, object]:
        count, length = self.ids.shape
        return {
            "sources": list(self.sources),
            "sequences": count,
            "tokens_each": length,
            "sha256_of_ids": self.sha256,
        }


def calibration(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    count: int,
    length: int,
    *,
    vocab_size: int,
    seed: int = 0,
    data: Path | None = None,
) -> Calibration:
    """`count` sequences of `length` tokens, as evenly from all sources as they have them.

    sources: "builtin" (the running interpreter's standard library, without its tests),
    "wikitext-2", or files as `texts.load_text` reads them (data: as there). Sequences do
    not overlap and are drawn at random by `seed`. Raises UsageError when a source is shorter than
    one sequence, AprError when the tokenizer is not the model's.
    """
    parts, notes = [], []
    for i, source in enumerate(sources):
        wanted = count * (i + 1) // len(sources) - count * i // len(sources)
        ids = _token_ids(_documents(source, seed, data), tokenizer, _CHOICE * wanted * length)
        windows = len(ids) // length
        if windows == 0:
            raise UsageError(
                f"--calibration {source} has {len(ids)} tokens, one sequence has {length}",
                "give more text, or a smaller --sequence-length",
            )
        if windows < wanted:
            notes.append(f"calibration: {source} has {windows} sequences of {length} tokens only")
        order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))
        parts.append(ids[: windows * length].view(windows, length)[order[:wanted].sort().values])
    joined = torch.cat(parts)
    if int(joined.max()) >= vocab_size:
        raise AprError(
            f"the tokenizer gives id {int(joined.max())}, the embedding has {vocab_size} rows",
            "the tokenizer belongs to another model",
        )
    return Calibration(joined, tuple(sources), tuple(notes))


def _documents(source: str, seed: int, data: Path | None) -> Iterator[str]:
    if source != BUILTIN:
        yield load_text(source, data if source == "wikitext-2" else None).text
        return
    texts = [file.text for file in source_files((), stdlib=True) if file.text and not file.is_test]
    random.Random(seed).shuffle(texts)
    yield from texts


def _token_ids(documents: Iterable[str], tokenizer: Tokenizer, enough: int) -> torch.Tensor:
    """Ids of documents one after another, until there are enough."""
    found: list[int] = []
    for text in documents:
        found += tokenizer.encode(text)
        if len(found) >= enough:
            break
    return torch.tensor(found)
