"""A tokenizer as GGUF metadata: the inverse of `gguf_tokenizer`.

Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from apr.common.errors import AprError
from apr.text.gguf_tokenizer import FIM_KEYS, TokenType
from apr.text.pre_tokenizers import pre_tokenizer_name, uses_bytes
from apr.text.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer, tokenizer_from_gguf

_KEY = "tokenizer.ggml."
_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# What the written tokenizer is tried on: code, white space, numbers, scripts, odd characters.
_SAMPLES = (
    "def f(x: int = 12345) -> str:\n    return f'{x!r:>10}' if x >= 2**31 else \"no\"\n",
    "class HTTPServer2Go(Base):\r\n\tdef __init__(self):\r\n\t\tself.items = []\n\n\n    # don't\n",
    "a  b   c    d     e\t\tf \n \n\n  g\n" + " " * 24 + "pass\n",
    "x=1;y=-3.14e-10;z=0xFF;1234567890 ½ ² ٣٤٥ 一二三",
    "Grüße, naïve café, ПРИВЕТ мир, שלום, مرحبا, こんにちは世界、中文。한국어 🙂👩‍👧🇩🇪",
    "I'm, you'RE, we'll, it's; \"quoted\" (a[b]{c})<d/> $e %f &g @h #i !? ... --- +=*/\\|~^`",
    "",
)


@dataclass(frozen=True)
class GgufTokenizer:
    """metadata: "tokenizer.*" keys. notes: what a reader will do otherwise than the original."""

    metadata: dict[str, Any]
    notes: tuple[str, ...]


def tokenizer_to_gguf(
    tokenizer: Tokenizer, vocab_size: int, architecture: str, pre: str | None = None
) -> GgufTokenizer:
    """Everything GGUF can say of a tokenizer, tried by reading it back.

    vocab_size: rows of the embedding; ids without a token get an unused one. pre: a name for
    `tokenizer.ggml.pre` instead of the derived one. Raises AprError when the tokenizer is of a
    kind GGUF has no form for, does not fit the embedding, or is read back with other token ids
    (with `pre` that is a note: the name was asked for).
    """
    spec = json.loads(tokenizer.backend.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise AprError(
            f"tokenizer.json: a {model['type']} model cannot be written to GGUF (BPE can)"
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise AprError(f"tokenizer.json: GGUF cannot say {option} = {model[option]!r}")
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    tokens, types = _token_table(tokenizer, model, vocab_size, pieces=not uses_bytes(spec))
    if uses_bytes(spec):
        metadata = {
            _KEY + "model": "gpt2",
            _KEY + "pre": pre or pre_tokenizer_name(spec),
            _KEY + "tokens": tokens,
            _KEY + "token_type": types,
            # llama.cpp refuses a file without merges; it finds nothing in an empty one.
            _KEY + "merges": [" ".join(pair) for pair in merges] or [""],
            _KEY + "add_space_prefix": False,
        }
    else:
        metadata = {
            _KEY + "model": "llama",
            _KEY + "pre": pre or "default",
            _KEY + "tokens": tokens,
            _KEY + "scores": _scores(tokens, merges),
            _KEY + "token_type": types,
            _KEY + "add_space_prefix": _space_prefix(tokenizer),
        }
    metadata |= _special_ids(tokenizer) | _templates(tokenizer)
    return GgufTokenizer(metadata, tuple(_tried(tokenizer, metadata, architecture, pre)))


def _token_table(
    tokenizer: Tokenizer, model: Mapping[str, Any], vocab_size: int, *, pieces: bool
) -> tuple[list[str], list[int]]:
    """Tokens and their types by id. pieces: a SentencePiece vocabulary."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    by_id = {index: token for token, index in vocabulary.items()}
    if max(by_id) >= vocab_size:
        raise AprError(
            f"the tokenizer has ids up to {max(by_id)}, the embedding {vocab_size} rows",
            "tokenizer and weights belong to different models",
        )
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens, types = [], []
    for index in range(vocab_size):
        filler = f"[PAD{index}]"
        token = by_id.get(index, filler if filler not in vocabulary else f"[UNUSED{index}]")
        kind = TokenType.NORMAL
        if token == filler or index not in by_id:
            kind = TokenType.UNUSED
        elif pieces and token == model.get("unk_token"):
            kind = TokenType.UNKNOWN
        elif index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
            token = _as_text(added[index]) if pieces else token
        elif pieces and model.get("byte_fallback") and _BYTE.fullmatch(token):
            kind = TokenType.BYTE
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _as_text(token: AddedToken) -> str:
    """llama.cpp looks for user-defined tokens in the text as it is, before spaces become ▁."""
    spaces = not token.special and (token.normalized or not token.content.strip(_SPACE))
    return token.content.replace(_SPACE, " ") if spaces else token.content


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """SentencePiece scores that rank merges as their order does: the earlier, the higher.

    All merges into one token are neighbours in files converted from SentencePiece, so a token's
    first merge stands for all. Tokens that nothing merges into come last.
    """
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault("".join(pair), index)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _space_prefix(tokenizer: Tokenizer) -> bool:
    """Whether text gets a ▁ in front. AprError unless spaces, and only they, become ▁."""
    backend, sample = tokenizer.backend, "a  b\n"
    text = backend.normalizer.normalize_str(sample) if backend.normalizer else sample
    if backend.pre_tokenizer is not None:
        text = "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    plain = sample.replace(" ", _SPACE)
    if text not in (plain, _SPACE + plain):
        raise AprError(
            f"tokenizer.json: its normalizer and pre_tokenizer turn {sample!r} into {text!r}",
            "neither byte-level nor SentencePiece BPE: there is no GGUF form",
        )
    return text != plain


def _special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for name, key in _SPECIAL_IDS.items():
        token = tokenizer.special_tokens.get(name)
        index = None if token is None else tokenizer.token_to_id(token)
        if index is not None:
            metadata[_KEY + key] = index
    for key, token in zip(FIM_KEYS, tokenizer.fim_tokens, strict=False):
        index = tokenizer.token_to_id(token)
        if index is not None:
            metadata[_KEY + key] = index
    ends = set(tokenizer.eos_ids)
    if ends:
        ends.discard(metadata.setdefault(_KEY + "eos_token_id", min(ends)))
    # Readers find ends of documents by their names.
    named = {t: i for i in ends if (t := tokenizer.id_to_token(i)) and t not in END_OF_TEXT}
    if "<|eom_id|>" in named:
        metadata[_KEY + "eom_token_id"] = named.pop("<|eom_id|>")
    turns = [named[token] for token in END_OF_TURN if token in named]
    if named:
        metadata[_KEY + "eot_token_id"] = [*turns, min(named.values())][0]
    framing = tokenizer.backend.encode("", add_special_tokens=True).ids
    bos, eos = metadata.get(_KEY + "bos_token_id"), metadata.get(_KEY + "eos_token_id")
    for adds_bos, adds_eos in ((False, False), (True, False), (False, True), (True, True)):
        if framing == [bos] * adds_bos + [eos] * adds_eos:
            flags = {_KEY + "add_bos_token": adds_bos, _KEY + "add_eos_token": adds_eos}
            return metadata | flags
    names = [tokenizer.id_to_token(i) for i in framing]
    raise AprError(
        f"tokenizer.json: its post_processor adds {names}; GGUF can add the begin and the end "
        f"token only ({tokenizer.id_to_token(bos or 0)}, {tokenizer.id_to_token(eos or 0)})"
    )


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    key = "tokenizer.chat_template"
    named = {name: t for name, t in tokenizer.chat_templates.items() if name != "default"}
    metadata: dict[str, Any] = {f"{key}.{name}": source for name, source in named.items()}
    if named:
        metadata["tokenizer.chat_templates"] = list(named)
    if tokenizer.chat_template is not None:
        metadata[key] = tokenizer.chat_template
    return metadata


def _tried(
    ours: Tokenizer, metadata: Mapping[str, Any], architecture: str, pre: str | None
) -> list[str]:
    """Read the metadata back and compare; differences in plain text raise, others are notes."""
    notes = []
    try:
        theirs = tokenizer_from_gguf({**metadata, "general.architecture": architecture})
    except AprError as error:
        if pre is None:
            raise
        return [f"the tokenizer was not tried: {error}"]
    samples = [unicodedata.normalize("NFC", sample) for sample in _SAMPLES]
    wrong = [sample for sample in samples if ours.encode(sample) != theirs.encode(sample)]
    if wrong:
        what = f"token ids change in GGUF, e.g. of {wrong[0][:40]!r}"
        if pre is None:
            raise AprError(f"tokenizer.json: {what}", "please report it; `pre` NAME forces a name")
        notes.append(f"{what}: {pre} is not this tokenizer's pre-tokenizer")
    if _differ(ours, theirs, " a"):
        notes.append("GGUF adds a space to text that begins with one, as SentencePiece does")
    if ours.encode("e\u0301") != theirs.encode("e\u0301"):
        notes.append("text that is not in Unicode normal form C gets other token ids in GGUF")
    added = [t.content for t in ours.backend.get_added_tokens_decoder().values()]
    words = [t for t in added if t.strip() and _SPACE not in t]
    around = [t for t in words if _differ(ours, theirs, f"a {t} b{t}c")]
    if around:
        notes.append(
            f"spaces beside {around[0]!r}{f' and {len(around) - 1} more' if around[1:] else ''} "
            "are kept in GGUF, where this tokenizer drops or does not add them"
        )
    missing = [ours.id_to_token(i) for i in sorted(ours.eos_ids - theirs.eos_ids)]
    if missing:
        notes.append(f"GGUF has no place for all end tokens; readers may miss {missing}")
    return notes


def _differ(ours: Tokenizer, theirs: Tokenizer, text: str) -> bool:
    return ours.encode(text, add_special_tokens=False) != theirs.encode(
        text, add_special_tokens=False
    )
