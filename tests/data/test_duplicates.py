"""Near-duplicates against exact Jaccard similarities of all pairs."""

from __future__ import annotations

import random
import re
from itertools import combinations, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.data.duplicates import MISSED, banding, find_duplicates, jaccard
from apr.data.training_rows import read_examples
from eval.shared import shared_data

pytest.importorskip("rensa", reason="near-duplicates need rensa: pip install apr[data]")


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)} or {tuple(words)}


def similarity(a: str, b: str) -> float:
    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


def components(texts: list[str], threshold: float) -> list[int]:
    """The smallest member of each text's component, by comparing all pairs."""
    group = list(range(len(texts)))
    sets = [runs(text) for text in texts]
    for i, j in combinations(range(len(texts)), 2):
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold:
            low, high = sorted((group[i], group[j]))
            group = [low if name == high else name for name in group]
    return group


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_jaccard_is_the_definition(a: set[int], b: set[int]) -> None:
    arrays = [np.array(sorted(one), dtype=np.uint64) for one in (a, b)]
    assert jaccard(*arrays) == (len(a & b) / len(a | b) if a | b else 1.0)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.85, 1.0])
def test_banding_is_the_widest_that_misses_few(threshold: float) -> None:
    bands, rows = banding(threshold, 256)
    assert bands * rows <= 256

    def missed(r: int) -> float:
        return (1 - threshold**r) ** (256 // r)

    assert missed(rows) <= MISSED
    assert all(missed(r) > MISSED for r in range(rows + 1, 257))


def mutated(text: str, edits: int, draw: random.Random) -> str:
    words = text.split(" ")
    for _ in range(edits):
        words[draw.randrange(len(words))] = f"w{draw.randrange(1000)}"
    return " ".join(words)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_groups_are_those_of_all_pairs(threshold: float) -> None:
    draw = random.Random(0)
    rows = read_examples(shared_data("instruct/code_alpaca_2k.json.gz"))
    texts = [one.text for one in islice(rows, 250)]
    texts += [mutated(text, draw.randrange(4), draw) for text in texts[:150]]
    texts += [texts[7], f"  {texts[9]}\n", "", " ", "one two", "One, two!"]
    draw.shuffle(texts)
    duplicates = find_duplicates(texts, threshold)
    assert duplicates.group.tolist() == components(texts, threshold)
    assert len(set(duplicates.group.tolist())) < len(texts) - 20
    for i, (exact, near) in enumerate(zip(duplicates.exact, duplicates.near, strict=True)):
        assert texts.index(texts[exact]) == exact
        assert texts[exact].strip() == texts[i].strip()
        if exact == i:
            assert all(one.strip() != texts[i].strip() for one in texts[:i])
        if near != i:
            assert near < i and similarity(texts[i], texts[near]) >= threshold


def test_scripts_without_spaces() -> None:
    """A sentence is not one word: two that differ in a character are near-duplicates."""
    one = "写一个函数，返回列表中所有偶数的和，如果列表为空则返回零。"
    texts = [
        one,
        one.replace("零", "一"),
        "用户登录之后，系统应当记录每次访问的时间和地点以备查询。",
    ]
    assert find_duplicates(texts).near.tolist() == [0, 0, 2]


def test_the_threshold_is_exact() -> None:
    """12 words have 8 runs of 5; a new last word leaves 7 of 9 in common."""
    words = [f"w{i}" for i in range(12)]
    a, b = " ".join(words), " ".join([*words[:-1], "other"])
    assert find_duplicates([a, b], 7 / 9).near.tolist() == [0, 0]
    assert find_duplicates([a, b], 7 / 9 + 1e-9).near.tolist() == [0, 1]
