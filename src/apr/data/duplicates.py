"""Rows that are the same, or nearly: MinHash finds candidates, exact Jaccard decides.

Texts are sets of runs of 5 words (`apr.data.overlap`). Two texts are near-duplicates from a Jaccard
similarity of 0.7 on: the settings of SantaCoder and StarCoder (Ben Allal et al. 2023,
arXiv:2301.03988; Li et al. 2023, arXiv:2305.06161). Candidates are texts that agree in
a band of MinHash values (Broder 1997; banding: Leskovec et al., Mining of Massive Datasets, ch. 3)
as the `rensa` library computes them; bands are chosen so that a pair at the threshold is missed
with a chance of at most 1 in 1000, more similar ones more rarely.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from apr.common.errors import AprError
from apr.data.overlap import WordNumbers, ngram_hashes

SHINGLE = 5
THRESHOLD = 0.7
PERMUTATIONS = 256
MISSED = 1e-3


@dataclass(frozen=True)
class Duplicates:
    """For each of N texts (int64, (N,)): exact, the first text that equals it but for white space
    at its ends, itself if none before does; near, a text before it that is similar, itself if
    there is none; group, the smallest member of what is linked by either, directly or over others.
    """

    exact: np.ndarray
    near: np.ndarray
    group: np.ndarray


class Groups:
    """Disjoint sets; a set is named by its smallest member."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def add(self) -> None:
        """A new member, numbered in order, alone."""
        self._parent.append(len(self._parent))

    def find(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, a: int, b: int) -> None:
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low

    def names(self) -> np.ndarray:
        """The set of each member: (N,) int64."""
        return np.array([self.find(i) for i in range(len(self._parent))], dtype=np.int64)


def find_duplicates(texts: Iterable[str], threshold: float = THRESHOLD) -> Duplicates:
    """threshold: least Jaccard similarity of near-duplicates, over 0, up to 1.

    Raises AprError if rensa is not installed.
    """
    rensa = _rensa()
    bands, rows = banding(threshold, PERMUTATIONS)
    index = rensa.RMinHashLSH(threshold, bands * rows, bands)
    vocabulary, first_seen = WordNumbers(), dict[str, int]()
    shingles: dict[int, np.ndarray] = {}
    exact: list[int] = []
    near: list[int] = []
    groups = Groups()
    for number, text in enumerate(texts):
        groups.add()
        exact.append(first_seen.setdefault(text.strip(), number))
        near.append(number)
        if exact[-1] != number:
            groups.join(number, exact[-1])
            continue
        mine = shingles[number] = shingle_set(vocabulary.add(text))
        sketch = rensa.RMinHash(bands * rows, 0)
        sketch.update(list(map(str, mine.tolist())))
        for other in sorted(index.query(sketch)):
            if groups.find(other) == groups.find(number):
                continue
            if jaccard(mine, shingles[other]) >= threshold:
                near[-1] = other if near[-1] == number else near[-1]
                groups.join(number, other)
        index.insert(number, sketch)
    return Duplicates(np.array(exact, np.int64), np.array(near, np.int64), groups.names())


def shingle_set(ids: np.ndarray) -> np.ndarray:
    """Sorted hashes of the runs of 5 words, of the one shorter run if there are fewer words."""
    return np.unique(ngram_hashes(ids, max(1, min(SHINGLE, len(ids)))))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted sets; 1 for two empty ones."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - shared
    return shared / union if union else 1.0


def banding(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, values in a band) of at most that many MinHash values: the widest bands, so the
    fewest candidates, that miss a pair at the threshold with a chance, (1 - threshold^r)^bands,
    of at most `MISSED`.
    """
    choices = ((permutations // r, r) for r in range(permutations, 0, -1))
    sure = (choice for choice in choices if (1 - threshold ** choice[1]) ** choice[0] <= MISSED)
    return next(sure, (permutations, 1))


def _rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise AprError(
            "near-duplicates are found with the rensa package, which is not installed",
            "pip install rensa, or apr[data]",
        ) from None
    return rensa
