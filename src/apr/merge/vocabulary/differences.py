"""Whether two models read the same text as the same ids, and if not, why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.merge.vocabulary.read import Vocabulary, read_vocabularies

_SHOWN = 3
_MATCHING = ("single_word", "lstrip", "rstrip", "normalized")
# Two descriptions of one normalizer or pre-tokenizer may look different: these tell.
_PROBES = (
    "def add(a, b):\n    return a + b\n",
    "\tx = [1, 22, 333, 4444]\r\n\r\n\n  # don't, DON'T we'LL",
    "camelCaseHTTPServer2Go __dunder__ a_b1 x=  1;  y =\t2    ",
    "  leading and trailing  ",
    "e\u0301 é ﬁ Å \u212b ² ½ ٣٤٥ ⅷ\u00a0b\u3000c\u200be",
    "日本語テキスト、中文。한국어 שלום मराठी 👩‍👩‍👧‍👦🏳️‍🌈",
    "1234567890" * 3 + " 3.14e-10, 0xFF",
    "<td></td>\n\n\n   <h1>!?... ---->>=",
)


@dataclass(frozen=True)
class VocabularyDifference:
    """Two tokenizers that give other ids.

    only_a, only_b: tokens, by id. moved: (token, id in a, id in b).
    rules: other reasons, each in words (merges, how added tokens are matched, how text is cut).
    """

    label_a: str
    label_b: str
    only_a: tuple[str, ...] = field(repr=False)
    only_b: tuple[str, ...] = field(repr=False)
    moved: tuple[tuple[str, int, int], ...] = field(repr=False)
    rules: tuple[str, ...]

    def describe(self) -> str:
        """All of it in one line, with the first few tokens."""
        parts = [
            f"{_count(tokens, 'token')} only in {label} ({first_few(map(repr, tokens))})"
            for tokens, label in ((self.only_a, self.label_a), (self.only_b, self.label_b))
            if tokens
        ]
        if self.moved:
            shown = first_few(f"{token!r}: {a} / {b}" for token, a, b in self.moved)
            parts.append(f"{_count(self.moved, 'id')} differ{_s(self.moved)} ({shown})")
        told = ", ".join([*parts, *self.rules])
        return f"the tokenizers of {self.label_a} and {self.label_b} differ: {told}"

    def refusal(self) -> UsageError:
        """The error for a merge that was not told what to do about it."""
        return UsageError(self.describe(), "choose `tokenizer_source` base or union")


def differences(a: Path, b: Path, label_a: str, label_b: str) -> VocabularyDifference | None:
    """Compare the tokenizers of two model folders or .gguf files; None where they give equal ids.

    Compared are tokens and their ids, merges (or scores), how added tokens are matched, and, by
    cutting sample texts where their descriptions differ, normalizer and pre-tokenizer. Special
    roles (which token ends a text), templates and begin tokens are not. Errors as
    `apr.text.load_tokenizer`.
    """
    one, two = read_vocabularies((a, b))
    if one is two:
        return None
    only_a = _only(one, two)
    only_b = _only(two, one)
    moved = [(t, i, two.ids[t]) for t, i in one.ids.items() if two.ids.get(t, i) != i]
    rules = [
        *_model_rules(one, two, label_a, label_b),
        *_added_rules(one, two, label_a, label_b),
    ]
    if not (only_a or only_b or moved or rules):
        rules = _cutting_rules(one, two)
    if not (only_a or only_b or moved or rules):
        return None
    moved.sort(key=lambda entry: entry[1])
    return VocabularyDifference(label_a, label_b, only_a, only_b, tuple(moved), tuple(rules))


def _only(one: Vocabulary, two: Vocabulary) -> tuple[str, ...]:
    return tuple(sorted(one.ids.keys() - two.ids.keys(), key=one.ids.__getitem__))


def _model_rules(one: Vocabulary, two: Vocabulary, label_a: str, label_b: str) -> list[str]:
    model_a, model_b = one.document["model"], two.document["model"]
    kinds = [str(model.get("type", "BPE")) for model in (model_a, model_b)]
    if kinds[0] != kinds[1]:
        return [f"they are of kind {kinds[0]} / {kinds[1]}"]
    if kinds[0] == "Unigram" and one.ids == two.ids and model_a["vocab"] != model_b["vocab"]:
        return ["token scores differ"]
    if model_a.get("merges") == model_b.get("merges"):
        return []
    # Of tokens that one of them lacks, merges differ as a matter of course.
    common = one.ids.keys() & two.ids.keys()
    merges_a, merges_b = ([m for m in v.merges if "".join(m) in common] for v in (one, two))
    if merges_a == merges_b:
        return []
    told = [
        f"{_count(only, 'merge')} only in {label} ({first_few(repr(' '.join(m)) for m in only)})"
        for only, label in (
            (_missing(merges_a, merges_b), label_a),
            (_missing(merges_b, merges_a), label_b),
        )
        if only
    ]
    return told or ["merges are in another order"]


def _missing(merges: list[tuple[str, str]], other: list[tuple[str, str]]) -> list[tuple[str, str]]:
    known = set(other)
    return [merge for merge in merges if merge not in known]


def _added_rules(one: Vocabulary, two: Vocabulary, label_a: str, label_b: str) -> list[str]:
    """Tokens of both that text is searched for in one alone, or otherwise."""
    common = one.ids.keys() & two.ids.keys()
    told = []
    for this, other, label in ((one, two, label_a), (two, one, label_b)):
        alone = [t for t in this.added if t in common and t not in other.added]
        if alone:
            count = _count(alone, "token")
            told.append(
                f"{count} matched as a whole only in {label} ({first_few(map(repr, alone))})"
            )
    unlike = [
        f"{token!r}: {', '.join(flags)}"
        for token in one.added.keys() & two.added.keys()
        if (flags := _unlike_flags(one.added[token], two.added[token]))
    ]
    if unlike:
        told.append(
            f"{_count(unlike, 'added token')} matched otherwise ({first_few(sorted(unlike))})"
        )
    return told


def _unlike_flags(one: Any, two: Any) -> list[str]:
    return [flag for flag in _MATCHING if getattr(one, flag) != getattr(two, flag)]


def _cutting_rules(one: Vocabulary, two: Vocabulary) -> list[str]:
    if _cutting(one) == _cutting(two):
        return []
    texts = [*_PROBES, *(f"a {token} b{token} " for token in one.added)]
    for text in texts:
        ids_a, ids_b = (v.tokenizer.encode(text, add_special_tokens=False) for v in (one, two))
        if ids_a != ids_b:
            return [f"text is cut otherwise ({text!r} becomes {len(ids_a)} / {len(ids_b)} tokens)"]
    return []


def _cutting(vocabulary: Vocabulary) -> tuple[Any, ...]:
    document = vocabulary.document
    options = {k: v for k, v in document["model"].items() if k not in ("vocab", "merges")}
    return document.get("normalizer"), document.get("pre_tokenizer"), options


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _s(things: Sequence[Any]) -> str:
    """The ending of the verb."""
    return "s" if len(things) == 1 else ""


def first_few(shown: Iterable[str]) -> str:
    """The first few of many, joined for a message."""
    every = list(shown)
    return ", ".join(every[:_SHOWN] + ["..."] * (len(every) > _SHOWN))
