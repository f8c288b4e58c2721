"""Training and evaluation parts of a data set that share no near-duplicates.

Rows that are linked by near-duplication or by the same response, directly or over others, stay
together; every value of a field is represented in both parts as in the whole.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apr.common.errors import UsageError
from apr.common.files import output_file
from apr.common.progress import counted
from apr.common.rows import row_writer
from apr.data.duplicates import SHINGLE, THRESHOLD, Groups, find_duplicates
from apr.data.overlap import words
from apr.data.training_rows import column_names, read_examples


@dataclass(frozen=True)
class Split:
    """What was written. strata: value of the field -> rows in [train, eval]. groups: of rows that
    stay together, one row or more; largest: rows of the largest.
    """

    data: str
    seed: int
    by: str | None
    near_duplicate_threshold: float
    train: int
    eval: int
    groups: int
    largest: int
    strata: dict[str, tuple[int, int]]
    files: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def split_data(
    data: Path,
    folder: Path,
    *,
    share: float,
    by: str | None = None,
    seed: int = 0,
    threshold: float = THRESHOLD,
    columns: Sequence[str] = (),
) -> Split:
    """Write train.jsonl, eval.jsonl and split.json (the counts) into a folder.

    share: of the rows for evaluation. by: field whose values are the strata; rows of a group
    count to the value of its first row. threshold: least Jaccard similarity of near-duplicates.
    columns: as `column_names` takes them.
    Raises UsageError, AprError.
    """
    if not 0 < share < 1:
        raise UsageError(f"`share` {share:g} is not between 0 and 1")
    if not 0 < threshold <= 1:
        raise UsageError(f"`near` {threshold:g} is not over 0 and up to 1")
    examples = list(counted(read_examples(data, column_names(columns)), "rows read"))
    missing = next((one for one in examples if by is not None and by not in one.fields), None)
    if missing is not None:
        raise UsageError(f"{missing.where} has no field {by!r}", "choose another `by`")
    texts = counted((one.text for one in examples), "rows compared")
    group = merge_groups(
        find_duplicates(texts, threshold).group, [one.response.strip() for one in examples]
    )
    strata = ["" if by is None else _label(one.fields[by]) for one in examples]
    in_eval = choose_eval(group, strata, share, seed)
    if not 0 < in_eval.sum() < len(examples):
        raise UsageError(
            f"{data}: {len(examples)} rows in {len(set(group.tolist()))} groups of near-duplicates"
            f" leave nothing for one part at `share` {share:g}",
            "a larger `share`, or more data",
        )
    paths = {name: folder / f"{name}.jsonl" for name in ("train", "eval")}
    with row_writer(paths["train"]) as write_train, row_writer(paths["eval"]) as write_eval:
        for example, is_eval in zip(examples, in_eval, strict=True):
            (write_eval if is_eval else write_train)(example.fields)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for label, is_eval in zip(strata, in_eval, strict=True):
        counts[label][int(is_eval)] += 1
    result = Split(
        data=str(data),
        seed=seed,
        by=by,
        near_duplicate_threshold=threshold,
        train=int((~in_eval).sum()),
        eval=int(in_eval.sum()),
        groups=len(set(group.tolist())),
        largest=int(np.bincount(group).max()),
        strata={} if by is None else {name: (n[0], n[1]) for name, n in sorted(counts.items())},
        files={name: str(path) for name, path in paths.items()},
    )
    with output_file(folder / "split.json") as file:
        file.write(json.dumps(result.to_json(), indent=1).encode() + b"\n")
    return result


def merge_groups(group: np.ndarray, responses: list[str]) -> np.ndarray:
    """Groups, joined where two rows have the same response: (N,) int64, named by their smallest
    member. Responses of a few words (yes, 42) join nothing.
    """
    groups, first = Groups(), dict[str, int]()
    for i, response in enumerate(responses):
        groups.add()
        groups.join(i, int(group[i]))
        if len(words(response)) >= SHINGLE:
            groups.join(i, first.setdefault(response, i))
    return groups.names()


def choose_eval(group: np.ndarray, strata: list[str], share: float, seed: int) -> np.ndarray:
    """Which rows are for evaluation: (N,) bool. Whole groups, drawn by the seed.

    Of each stratum as many rows as its share says, to the nearest, or fewer where the groups left
    are too large.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, name in enumerate(group.tolist()):
        members[name].append(i)
    groups_of: dict[str, list[int]] = defaultdict(list)
    for name in members:
        groups_of[strata[name]].append(name)
    chosen = np.zeros(len(group), dtype=bool)
    for stratum, names in sorted(groups_of.items()):
        wanted = round(share * sum(len(members[name]) for name in names))
        random.Random(f"{seed} {stratum}").shuffle(names)
        for name in names:
            if len(members[name]) <= wanted:
                chosen[members[name]] = True
                wanted -= len(members[name])
    return chosen


def _label(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
