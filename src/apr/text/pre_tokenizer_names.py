"""The name GGUF has for the pre-tokenizer of a tokenizer.json, found by what the rules are.

The rules are brought into the form of `PreTokenizer` and looked up in `PRE_TOKENIZERS`, so a newly
trained tokenizer with known rules needs no entry anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from apr.common.errors import AprError
from apr.text.pre_tokenizers import PRE_TOKENIZERS

_HINT = "--pre NAME forces a name llama.cpp knows"
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
