"""Texts as words, words as numbers, runs of n words as 64-bit hashes.

A word is a run of letters, digits and underscores, in lower case; punctuation and white space
only separate (Brown et al. 2020, arXiv:2005.14165, appendix C; BigCode's deduplication splits
there, too). So layout, quotes and operators make no difference, names and numbers do.
"""

from __future__ import annotations

import re

import numpy as np

WORD = re.compile(r"\w+")
UNKNOWN = 0
_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing modulo 2^64


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


class Vocabulary:
    """Numbers for words, from 1 on in the order they come; `UNKNOWN` for others once closed."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def add(self, text: str) -> np.ndarray:
        """The words of a text, new ones numbered: (T,) int64."""
        numbers = self._numbers
        ids = [numbers.setdefault(word, len(numbers) + 1) for word in words(text)]
        return np.array(ids, dtype=np.int64)

    def look_up(self, text: str) -> np.ndarray:
        """The words of a text, `UNKNOWN` for those never added: (T,) int64."""
        get = self._numbers.get
        return np.array([get(word, UNKNOWN) for word in words(text)], dtype=np.int64)

    def are_numbers(self) -> np.ndarray:
        """For each number given out (and `UNKNOWN`), whether its word is digits alone."""
        return np.array([False, *(word.isdigit() for word in self._numbers)])


def ngram_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all runs of n words: (T,) int64 -> (T - n + 1,) uint64, none if T < n.

    Each word gets 64 mixed bits (splitmix64's finalizer), so that two different runs agree by a
    chance of about 2^-64.
    """
    count = max(0, len(ids) - n + 1)
    mixed = _mix(ids.astype(np.uint64))
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * np.uint64(_BASE) + mixed[offset : offset + count]
    return hashes


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values + np.uint64(1)) * np.uint64(_BASE)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
