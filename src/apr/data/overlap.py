"""How much of each reference text a row repeats, by shared runs of n words.

The coverage of a reference text by a row is the part of the text's words that lie in a run of n
words which the row has, too: Tülu 3's measure (Lambert et al. 2024, arXiv:2411.15124:
8-grams, more than half of the test's tokens) and Llama 3's (arXiv:2407.21783). Any
shared run at all is GPT-3's rule (Brown et al. 2020, appendix C: 13-grams) and, for n = 10, that
of DeepSeek-Coder (arXiv:2401.14196). Runs of numbers alone do not count: 1 2 3 4 5 6
7 8 9 10 stands in many tests and says nothing.

Words are runs of letters, digits and underscores, in lower case; punctuation and white space only
separate (GPT-3's appendix C; BigCode's deduplication splits there, too). So layout, quotes and
operators make no difference, names and numbers do. Where a script puts no spaces between words
(Chinese, Japanese, Thai, ...) each character is one, and an escaped line end (the two characters
\\n, as in JSON within a text) separates as a real one does. Runs of n words are 64-bit hashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# Scripts that are written without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_NO_SPACES = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
# Never the letter of an escape, nor a mark of these scripts by itself.
WORD = re.compile(rf"(?!(?<=\\)[nrt])(?:[^\W{_NO_SPACES}]+|[{_NO_SPACES}])(?<!\W)")
UNKNOWN = 0
_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing modulo 2^64


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


class WordNumbers:
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


@dataclass(frozen=True)
class Overlap:
    """One row against one reference text. text: its index. coverage: 0 to 1."""

    text: int
    coverage: float


class NgramIndex:
    """The n-grams of reference texts, in sorted arrays. Texts of fewer than n words have none.

    n: words in a run, at least 1.
    """

    def __init__(self, texts: Sequence[str], n: int) -> None:
        self.n = n
        self._vocabulary = WordNumbers()
        ids = [self._vocabulary.add(text) for text in texts]
        self.lengths = np.array([len(one) for one in ids], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        is_number = self._vocabulary.are_numbers()
        hashes, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for start, one in zip(self._starts[:-1], ids, strict=True):
            numbers = np.concatenate([[0], np.cumsum(is_number[one])])
            runs = np.flatnonzero(numbers[n:] - numbers[: max(0, len(one) - n + 1)] < n)
            hashes.append(ngram_hashes(one, n)[runs])
            places.append(start + runs)
        flat = np.concatenate(hashes)
        order = np.argsort(flat, kind="stable")
        self._keys = flat[order]
        self._places = np.concatenate(places)[order]

    def overlaps(self, row: str) -> list[Overlap]:
        """The texts a row shares n-grams with, most covered first (then in their order)."""
        _, places = self._shared(row)
        if not len(places):
            return []
        places = np.unique(places)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        # Each shared run covers n words, or fewer where the next one begins before its end.
        reach = np.full(len(places), self.n)
        same = owners[1:] == owners[:-1]
        reach[:-1][same] = np.minimum(np.diff(places)[same], self.n)
        covered = np.bincount(owners, weights=reach, minlength=len(self.lengths))
        found = np.unique(owners)
        shares = covered[found] / self.lengths[found]
        order = np.argsort(-shares, kind="stable")
        return [Overlap(int(found[i]), float(shares[i])) for i in order]

    def spans(self, row: str, text: int) -> list[tuple[int, int]]:
        """Where a row repeats a text: (start, end) in characters, in order, apart."""
        windows, places = self._shared(row)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        covered = np.zeros(len(row) + 1, dtype=bool)
        marks = [match.span() for match in WORD.finditer(row)]
        for window in np.unique(windows[owners == text]).tolist():
            covered[marks[window][0] : marks[window + self.n - 1][1]] = True
        edges = np.flatnonzero(np.diff(covered, prepend=False, append=False)).tolist()
        return _joined(row, list(zip(edges[::2], edges[1::2], strict=True)))

    def _shared(self, row: str) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (index of a run in the row, place of the same run in the references)."""
        ids = self._vocabulary.look_up(row)
        hashes = ngram_hashes(ids, self.n)
        unknown = np.concatenate([[0], np.cumsum(ids == UNKNOWN)])
        runs = np.flatnonzero(unknown[self.n :] == unknown[: len(hashes)])
        first = np.searchsorted(self._keys, hashes[runs], side="left")
        counts = np.searchsorted(self._keys, hashes[runs], side="right") - first
        hit = counts > 0
        runs, first, counts = runs[hit], first[hit], counts[hit]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(runs, counts), self._places[np.repeat(first, counts) + within]


def _joined(row: str, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans with no word between them become one."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and not WORD.search(row, joined[-1][1], start):
            start = joined.pop()[0]
        joined.append((start, end))
    return joined
