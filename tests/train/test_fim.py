"""Fill-in-the-middle documents: nothing is lost, the rates are those asked for, seeds repeat."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.common.errors import UsageError
from apr.text import Tokenizer, load_tokenizer
from apr.train.dataset import read_documents
from apr.train.examples import (
    LEFT_TO_RIGHT,
    TOO_LONG,
    cut_in_three,
    draw_order,
    fim_transform,
    pieces_that_fit,
    text_document,
)
from apr.train.train_settings import FimSettings

from .tiny import write_rows, write_tokenizer

TOKENS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
PRE, SUF, MID = 259, 260, 261


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of bytes, with StarCoder's tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, extra=TOKENS)
    return load_tokenizer(folder)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def unmade(ids: list[int], tokenizer: Tokenizer) -> tuple[str, str]:
    """(order, the document before it was transformed), read off the layout of section 3."""
    end = tokenizer.token_to_id("<|endoftext|>")
    assert ids[0] == PRE and ids[-1] == end
    suf, mid = ids.index(SUF), ids.index(MID)
    after, filled = ids[suf + 1 : mid], ids[mid + 1 : -1]
    if suf == 1:  # SPM: <PRE> <SUF> suffix <MID> prefix middle
        return "SPM", tokenizer.decode(filled + after)
    return "PSM", tokenizer.decode(ids[1:suf] + filled + after)


@given(st.text(), st.integers(0, 2**32))
def test_the_parts_are_the_document(text: str, seed: int) -> None:
    parts = cut_in_three(text, generator(seed))
    assert "".join(parts) == text
    assert parts == cut_in_three(text, generator(seed))


def test_cuts_are_uniform() -> None:
    """Two independent uniform places of n + 1: each pair i < j with 2 / (n + 1)^2, i = j with half
    that (closed form), by Pearson's chi-squared.
    """
    n, draws = 4, 20_000
    random = generator(7)
    counts: dict[tuple[int, int], int] = {}
    for _ in range(draws):
        prefix, middle, _ = cut_in_three("abcd", random)
        place = (len(prefix), len(prefix) + len(middle))
        counts[place] = counts.get(place, 0) + 1
    expected = {
        (i, j): draws * (1 if i == j else 2) / (n + 1) ** 2
        for i in range(n + 1)
        for j in range(i, n + 1)
    }
    assert counts.keys() == expected.keys()
    # 14 degrees of freedom: 36.1 is exceeded once in a thousand seeds.
    assert sum((counts[p] - e) ** 2 / e for p, e in expected.items()) < 36.1


@pytest.mark.parametrize(("rate", "spm_rate"), [(0.5, 0.5), (0.9, 0.2), (1.0, 1.0), (0.0, 0.5)])
def test_rates(rate: float, spm_rate: float) -> None:
    """Binomial: within four standard deviations."""
    n, random = 10_000, generator(3)
    drawn = [draw_order(rate, spm_rate, random) for _ in range(n)]
    for order, share in (("psm", rate * (1 - spm_rate)), ("spm", rate * spm_rate)):
        assert abs(drawn.count(order) - n * share) <= 4 * sqrt(n * share * (1 - share))  # type: ignore[arg-type]


@given(text=st.text(min_size=1).filter(str.strip), seed=st.integers(0, 2**32))
def test_documents_hold_the_text(tokenizer: Tokenizer, text: str, seed: int) -> None:
    transform = fim_transform(FimSettings(1.0), tokenizer, 10**6)
    (document,), (kind,) = transform(text, generator(seed))
    assert document.trained.all()
    order, found = unmade(document.ids.tolist(), tokenizer)
    # PSM without a prefix looks like SPM without one, and is the same.
    assert found == text and (order == kind or document.ids[1] == SUF)


def test_too_long_a_document_stays_as_it_is(tokenizer: Tokenizer) -> None:
    transform = fim_transform(FimSettings(1.0), tokenizer, 50)
    (document,), kinds = transform("x" * 60, generator(0))
    assert kinds == [TOO_LONG]
    assert document.ids.tolist() == text_document("x" * 60, tokenizer).ids.tolist()


def test_context_level_cuts_first(tokenizer: Tokenizer) -> None:
    """Every piece fits and is whole; together they are the text (section 4.4)."""
    text = "".join(f"def f{i}():\n    return {'y' * (i % 7)}\n\n" for i in range(60)) + "z" * 200
    transform = fim_transform(FimSettings(0.7, level="context"), tokenizer, 64)
    documents, kinds = transform(text, generator(1))
    assert len(documents) == len(kinds) > 20 and {"PSM", "SPM", LEFT_TO_RIGHT} == set(kinds)
    assert max(map(len, documents)) <= 64
    found = ""
    for document, kind in zip(documents, kinds, strict=True):
        ids = document.ids.tolist()
        if kind == LEFT_TO_RIGHT:
            found += tokenizer.decode(ids)
        else:
            found += unmade(ids, tokenizer)[1]
    assert found == text
    ends = [i for i, d in enumerate(documents) if d.ids[-1] == tokenizer.eos_id]
    assert set(ends) <= {len(documents) - 1}  # the others stop where the text goes on


@given(st.text(alphabet="ab\n☺", max_size=200), st.integers(1, 40))
def test_pieces(tokenizer: Tokenizer, text: str, room: int) -> None:
    pieces = list(pieces_that_fit(text, tokenizer, room))
    assert "".join(pieces) == text and all(pieces)
    assert all(len(tokenizer.encode(piece)) <= max(room, 4) for piece in pieces)


def test_rows_of_a_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Drawn by seed and row: the same again, and a row's cut does not depend on other rows."""
    rows: list[dict[str, Any]] = [{"text": f"def f{i}():\n    return {i}\n"} for i in range(300)]
    path = write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": "a", "completion": "b"}])
    transform = fim_transform(FimSettings(0.5), tokenizer, 128)

    def read(path: Path, seed: int) -> list[list[int]]:
        documents, _ = read_documents([path], tokenizer, 128, transform=transform, seed=seed)
        return [document.ids.tolist() for document in documents]

    documents, report = read_documents([path], tokenizer, 128, transform=transform, seed=2)
    first = [document.ids.tolist() for document in documents]
    assert first == read(path, 2) != read(path, 3)
    changed = write_rows(tmp_path / "other.jsonl", [{"text": "other"}, *rows[1:]])
    assert read(changed, 2)[1:] == first[1:-1]
    assert report.forms.total() == 300 and report.forms["PSM"] > 40 < report.forms["SPM"]
    assert f"{report.forms['PSM']} PSM" in "\n".join(report.lines())
    assert json.loads(json.dumps(report.to_json()))["forms"] == dict(report.forms)


def test_named_tokens_and_what_is_missing(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, extra=("<a>", "<b>", "<c>"))
    other = load_tokenizer(tmp_path)
    with pytest.raises(UsageError, match=r"no tokens for filling in the middle.*`fim_tokens`"):
        fim_transform(FimSettings(0.5), other, 64)
    with pytest.raises(UsageError, match="no token <d>"):
        fim_transform(FimSettings(0.5, tokens=("<a>", "<b>", "<d>")), other, 64)
    transform = fim_transform(FimSettings(1.0, 1.0, tokens=("<a>", "<b>", "<c>")), other, 64)
    (document,), _ = transform("xy", generator(0))
    assert document.ids[:2].tolist() == [259, 260] and document.ids[-1] == other.eos_id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.5}, "`rate` is 1.5"),
        ({"rate": 0.5, "spm_rate": -1.0}, "`spm_rate` is -1"),
        ({"rate": 0.5, "level": "word"}, "`level` word is unknown"),
        ({"tokens": ("a", "b", "c")}, "`tokens` without `rate`"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FimSettings(**settings)
