"""A score of 0 to 100 for training data, with its reasons: the mean of its rows' scores."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apr.common.counted import counted
from apr.common.errors import UsageError
from apr.data.checks import COSTS, Problem, problems_of, python_code
from apr.data.duplicates import THRESHOLD, find_duplicates
from apr.data.rows import read_examples, row_writer


@dataclass(frozen=True)
class Quality:
    """score: mean of the rows' (100 less the costs of the problems a row has, each kind once, at
    least 0). with_code: rows with Python. problems: kind -> rows that have it. lost: kind -> what
    it costs the score at most, in points. lengths: of responses, in characters.
    """

    data: str
    rows: int
    score: float
    with_code: int
    near_duplicate_threshold: float
    problems: dict[str, int]
    lost: dict[str, float]
    lengths: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(
    data: Path, *, threshold: float = THRESHOLD, scores: Path | None = None
) -> Quality:
    """Check every row by itself and against the others.

    threshold: least Jaccard similarity of near-duplicates. scores: a file for one row each:
    {where, score, problems}. Raises UsageError, AprError.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--near {threshold:g} is not over 0 and up to 1")
    places: list[str] = []
    found: list[list[Problem]] = []
    texts: list[str] = []
    lengths: list[int] = []
    with_code = 0
    for example in counted(read_examples(data), "rows checked"):
        places.append(example.where)
        code = python_code(example.response)
        with_code += code is not None
        found.append(problems_of(example, code))
        texts.append(example.text)
        lengths.append(len(example.response))
    if not places:
        raise UsageError(f"{data} has no rows")
    duplicates = find_duplicates(counted(texts, "rows compared"), threshold)
    for i, (exact, near) in enumerate(zip(duplicates.exact, duplicates.near, strict=True)):
        if exact != i:
            found[i].append(Problem("exact duplicate", f"of {places[exact]}"))
        elif near != i:
            found[i].append(Problem("near-duplicate", f"of {places[near]}"))
    row_scores = [score(problems) for problems in found]
    with row_writer(scores) if scores else nullcontext() as write:
        if write is not None:
            for where, points, problems in zip(places, row_scores, found, strict=True):
                write({"where": where, "score": points, "problems": [asdict(p) for p in problems]})
    counts = Counter(kind for problems in found for kind in {one.kind for one in problems})
    return Quality(
        data=str(data),
        rows=len(places),
        score=round(sum(row_scores) / len(row_scores), 2),
        with_code=with_code,
        near_duplicate_threshold=threshold,
        problems={kind: counts[kind] for kind in COSTS if counts[kind]},
        lost={
            kind: round(COSTS[kind] * counts[kind] / len(places), 2)
            for kind in COSTS
            if counts[kind]
        },
        lengths=_quantiles(lengths),
    )


def score(problems: list[Problem]) -> int:
    """100 less the cost of each kind of problem there is, at least 0."""
    return max(0, 100 - sum(COSTS[kind] for kind in {one.kind for one in problems}))


def _quantiles(lengths: list[int]) -> dict[str, int]:
    values = np.percentile(lengths, [0, 5, 50, 95, 100], method="lower").astype(int).tolist()
    return dict(zip(("min", "p5", "median", "p95", "max"), values, strict=True))
