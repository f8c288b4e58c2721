"""Oracles: the pre-tokenizers transformers builds for its tokenizer classes, and the expressions
published tokenizer.json files have (llama.cpp's source quotes them beside its own).
"""

from __future__ import annotations

import json

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import CohereTokenizer, GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from apr.common.errors import AprError
from apr.text.pre_tokenizers import pre_tokenizer_name

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DEEPSEEK_CODER = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}"
    "| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


def spec(pre_tokenizer, ignore_merges=False):
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizer
    return json.loads(backend.to_str())


def splits(*patterns, behavior="isolated", invert=False):
    return [pre_tokenizers.Split(Regex(p), behavior=behavior, invert=invert) for p in patterns]


def sequence(*steps):
    return pre_tokenizers.Sequence([*steps, BYTES])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (GPT2Tokenizer, "gpt-2"),
        (Qwen2Tokenizer, "qwen2"),
        (Qwen3_5Tokenizer, "qwen35"),
        (CohereTokenizer, "smollm"),  # the same rules, the first of their names
    ],
)
def test_the_tokenizers_transformers_builds(kind, name):
    assert pre_tokenizer_name(json.loads(kind().backend_tokenizer.to_str())) == name


@pytest.mark.parametrize(("ignore_merges", "name"), [(True, "llama-bpe"), (False, "dbrx")])
def test_the_pattern_of_transformers_tiktoken_converter(ignore_merges, name):
    pre = sequence(*splits(TikTokenConverter().pattern))
    assert pre_tokenizer_name(spec(pre, ignore_merges)) == name


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([*splits(*DEEPSEEK_CODER), pre_tokenizers.Digits(True)], False, "deepseek-coder"),
        (splits(*DEEPSEEK_V3), False, "deepseek-v3"),
        (splits(TEKKEN), True, "tekken"),
        (splits(O200K), False, "gpt-4o"),
        (splits(O200K, behavior="removed", invert=True), False, "gpt-4o"),
        (splits(SEED), False, "seed-coder"),
        ([pre_tokenizers.Sequence(splits(SEED))], False, "seed-coder"),
        (splits(SEED), True, "seed-coder"),  # no name says that it looks up whole words
    ],
)
def test_published_expressions(steps, ignore_merges, name):
    assert pre_tokenizer_name(spec(sequence(*steps), ignore_merges)) == name


def test_smollm2_and_starcoder2():
    pre = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    assert pre_tokenizer_name(spec(pre)) == "smollm"


@pytest.mark.parametrize(
    ("pre", "message"),
    [
        (sequence(*splits(r"\p{N}{1,4}|\D+")), r"the pre-tokenizer \p{N}{1,4}|\D+ ("),
        (sequence(*splits(r"\d"), *splits(r"\w")), r"the pre-tokenizer \d then \w ("),
        (sequence(*splits("x", behavior="removed")), "Split Removed {'Regex': 'x'}"),
        (sequence(pre_tokenizers.Punctuation()), "the pre-tokenizer Punctuation"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "ByteLevel with add_prefix_space"),
        (BYTES, "ByteLevel without a pattern"),
    ],
)
def test_unknown_rules_are_named(pre, message):
    with pytest.raises(AprError) as caught:
        pre_tokenizer_name(spec(pre))
    assert message in str(caught.value)
    assert "`pre` NAME" in caught.value.hint and "\n" not in str(caught.value)
