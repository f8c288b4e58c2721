"""How byte-level BPE vocabularies cut text before merging, by the name GGUF files give it.

GGUF stores no pre-tokenizer, only `tokenizer.ggml.pre`: a name that llama.cpp gives to the rules
in a model's original `tokenizer.json`. The expressions below are those rules as the original
files state them (llama.cpp approximates some, e.g. `(?i:'s)` by `'[sS]`).

The way back finds the name by what the rules are: those of a tokenizer.json are brought into the
form of `PreTokenizer` and looked up in `PRE_TOKENIZERS`, so a newly trained tokenizer with known
rules needs no entry anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Regex, normalizers, pre_tokenizers

from apr.common.errors import AprError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"

_CL100K = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_MARKS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SEED = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
# Words cut where lower case meets upper case (camelCase).
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[一-龥ࠀ-一가-\ud7ff]+",
    r"\p{N}",
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}",
)


@dataclass(frozen=True)
class PreTokenizer:
    """Rules applied one after another, each to the pieces the one before left.

    patterns: regular expressions whose matches become pieces of their own.
    gpt2_words: cut by GPT-2's own expression at the end (it is built into the byte-level step).
    whole_words: a piece that is in the vocabulary is taken whole, without merging.
    adds_bos: llama.cpp puts the begin-of-sequence token in front unless the file says otherwise.
    normalizer: the Unicode normal form the original applies first.
    """

    patterns: tuple[str, ...] = ()
    gpt2_words: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    normalizer: Literal["NFC"] | None = None

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer for the tokenizers library."""
        splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in self.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2_words)
        return pre_tokenizers.Sequence([*splits, byte_level]) if splits else byte_level

    def build_normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.normalizer == "NFC" else None


_GPT2 = PreTokenizer(gpt2_words=True)
_DIGITS_GPT2 = PreTokenizer(patterns=(r"\p{N}",), gpt2_words=True)
_LLAMA3 = PreTokenizer(patterns=(_CL100K,), whole_words=True, adds_bos=True)
_CL100K_MERGED = PreTokenizer(patterns=(_CL100K,))
_QWEN = PreTokenizer(patterns=(_QWEN2,), normalizer="NFC")
_GPT4O = PreTokenizer(patterns=(_O200K,))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "mellum": _GPT2,
    "smollm": _DIGITS_GPT2,
    "starcoder": _DIGITS_GPT2,
    "refact": _DIGITS_GPT2,
    "codeshell": _DIGITS_GPT2,
    "command-r": _DIGITS_GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": _CL100K_MERGED,
    "smaug-bpe": _CL100K_MERGED,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "qwen35": PreTokenizer(patterns=(_QWEN35,), normalizer="NFC"),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "tekken": PreTokenizer(patterns=(_TEKKEN,), whole_words=True, adds_bos=True),
    "deepseek-coder": PreTokenizer(patterns=_DEEPSEEK_CODER),
    "deepseek-v3": PreTokenizer(patterns=_DEEPSEEK_V3),
    "seed-coder": PreTokenizer(patterns=(_SEED,)),
}

_HINT = "`pre` NAME forces a name llama.cpp knows"
# llama.cpp's "default" is no rules any published tokenizer.json has.
_NAMES = tuple(name for name in PRE_TOKENIZERS if name != "default")


def pre_tokenizer_name(spec: Mapping[str, Any]) -> str:
    """`tokenizer.ggml.pre` for a byte-level BPE. spec: a parsed tokenizer.json.

    Raises AprError naming the rule or the pattern that GGUF has no name for.
    """
    patterns: list[str] = []
    gpt2_words = False
    for step in _steps(spec.get("pre_tokenizer")):
        kind = step["type"]
        if kind == "ByteLevel":
            if step.get("add_prefix_space"):
                raise _unknown("ByteLevel with add_prefix_space")
            gpt2_words = bool(step.get("use_regex", True))
        elif kind == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "Split" and "Regex" in step["pattern"] and _isolates(step):
            patterns.append(_spelled(step["pattern"]["Regex"]))
        else:
            detail = f" {step['behavior']} {step['pattern']}" if kind == "Split" else ""
            raise _unknown(kind + detail)
    alike = [
        name
        for name in _NAMES
        if tuple(map(_spelled, PRE_TOKENIZERS[name].patterns)) == tuple(patterns)
        and PRE_TOKENIZERS[name].gpt2_words == gpt2_words
    ]
    if not alike:
        words = ["GPT-2's words"] if gpt2_words else []
        raise _unknown(" then ".join([*patterns, *words]) or "ByteLevel without a pattern")
    whole = bool(spec["model"].get("ignore_merges"))
    # Whether words are looked up whole before merging seldom changes anything: second choice.
    same = [name for name in alike if PRE_TOKENIZERS[name].whole_words == whole]
    return (same or alike)[0]


def _unknown(rule: str) -> AprError:
    return AprError(f"tokenizer.json: no GGUF name is known for the pre-tokenizer {rule}", _HINT)


def _steps(spec: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The rules in order, sequences unrolled."""
    if spec is None:
        return
    if spec["type"] == "Sequence":
        for step in spec["pretokenizers"]:
            yield from _steps(step)
    else:
        yield spec


def _isolates(step: Mapping[str, Any]) -> bool:
    """Matches become pieces. "Removed" and inverted says the same of patterns that match all."""
    behavior, invert = step.get("behavior"), bool(step.get("invert"))
    return behavior == "Isolated" or (behavior == "Removed" and invert)


def _spelled(pattern: str) -> str:
    """One spelling for what expressions write in several ways."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\p{N}{1}", r"\p{N}")


def uses_bytes(spec: Mapping[str, Any]) -> bool:
    """Whether a parsed tokenizer.json maps bytes to characters as GPT-2 does."""
    return any(step["type"] == "ByteLevel" for step in _steps(spec.get("pre_tokenizer")))
