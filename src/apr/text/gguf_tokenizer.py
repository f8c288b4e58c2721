"""A tokenizer rebuilt from GGUF metadata, as a `tokenizers.Tokenizer`.

Two kinds of vocabulary (`tokenizer.ggml.model`):

gpt2   byte-level BPE: tokens, merges, and a name for the pre-tokenizer.
llama  SentencePiece BPE: tokens with scores and no merges. SentencePiece joins the two neighbours
       whose union has the best score; listing every split of every token by falling score gives
       ordinary BPE merges that do the same.

Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from apr.common.errors import AprError
from apr.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

_KEY = "tokenizer.ggml."
FIM_KEYS = ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id")
_SPACE = "▁"  # SentencePiece writes a space so


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokenizer fields of a GGUF file, checked against each other.

    tokens, types, scores: one entry a token id (scores only where the file has them).
    special: "bos_token", "eos_token", "unk_token", "pad_token" (as far as known) to the token.
    end_ids: the eos, eot and eom ids the file names. fim_tokens: its tokens for prefix, suffix
    and middle, where it names all three.
    """

    model: str
    pre: str | None
    architecture: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    special: dict[str, str]
    end_ids: tuple[int, ...]
    add_bos: bool | None
    add_eos: bool
    add_space_prefix: bool
    fim_tokens: tuple[str, ...] = ()

    def of_type(self, *types: TokenType) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def read_vocabulary(metadata: Mapping[str, Any]) -> GgufVocabulary:
    """Pick the tokenizer out of GGUF metadata (key to value); AprError names what is missing."""
    tokens = _unique_tokens(_required(metadata, "tokens"))
    model = str(_required(metadata, "model"))
    types = metadata.get(_KEY + "token_type")
    scores = metadata.get(_KEY + "scores")
    merges = metadata.get(_KEY + "merges")
    for name, values in (("token_type", types), ("scores", scores)):
        if values is not None and len(values) != len(tokens):
            raise AprError(
                f"GGUF {_KEY}{name}: {len(values)} entries for {len(tokens)} tokens",
                "the file is damaged; download it again",
            )
    pre = metadata.get(_KEY + "pre")
    add_bos = metadata.get(_KEY + "add_bos_token")
    ids = {
        name: _token_id(metadata, key, len(tokens))
        for name, key in (
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        )
    }
    if model == "llama":
        # SentencePiece's own defaults, which old files leave out.
        defaults = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
        ids.update({k: v for k, v in defaults.items() if ids[k] is None and v < len(tokens)})
    ends = [ids["eos_token"]]
    ends += [_token_id(metadata, key, len(tokens)) for key in ("eot_token_id", "eom_token_id")]
    fim = [_token_id(metadata, key, len(tokens)) for key in FIM_KEYS]
    return GgufVocabulary(
        model=model,
        pre=None if pre is None else str(pre),
        architecture=str(metadata.get("general.architecture", "")),
        tokens=tokens,
        types=tuple(int(t) for t in types) if types is not None else (1,) * len(tokens),
        scores=None if scores is None else tuple(float(s) for s in scores),
        merges=None if merges is None else tuple(merges),
        special={name: tokens[i] for name, i in ids.items() if i is not None},
        end_ids=tuple(i for i in ends if i is not None),
        add_bos=None if add_bos is None else bool(add_bos),
        add_eos=bool(metadata.get(_KEY + "add_eos_token", False)),
        add_space_prefix=bool(metadata.get(_KEY + "add_space_prefix", True)),
        fim_tokens=tuple(tokens[i] for i in fim if i is not None) if None not in fim else (),
    )


def build_backend(vocabulary: GgufVocabulary) -> Backend:
    """The tokenizer a GGUF vocabulary describes; AprError for kinds not known here."""
    if vocabulary.model == "gpt2":
        rules = _pre_tokenizer(vocabulary.pre)
        backend = _byte_level(vocabulary, rules)
        adds_bos = rules.adds_bos
    elif vocabulary.model == "llama":
        backend = _sentence_piece(vocabulary)
        adds_bos = True
    else:
        raise AprError(
            f"GGUF {_KEY}model: {vocabulary.model!r} is not a tokenizer known here (gpt2, llama)",
            "use the model's Hugging Face folder instead",
        )
    _add_special_tokens(backend, vocabulary)
    adds_bos = adds_bos if vocabulary.add_bos is None else vocabulary.add_bos
    _set_template(
        backend,
        bos=vocabulary.special.get("bos_token") if adds_bos else None,
        eos=vocabulary.special.get("eos_token") if vocabulary.add_eos else None,
    )
    return backend


def _set_template(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Make `encode(add_special_tokens=True)` put bos in front and eos behind (None: neither)."""
    before, after = (f"{bos}:0 " if bos else ""), (f" {eos}:0" if eos else "")
    second = f"{bos}:1 " if bos else ""
    last = f" {eos}:1" if eos else ""
    single = f"{before}$A:0{after}"
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} {second}$B:1{last}",
        special_tokens=[(t, backend.token_to_id(t)) for t in dict.fromkeys((bos, eos)) if t],
    )


def _byte_level(vocabulary: GgufVocabulary, rules: PreTokenizer) -> Backend:
    longer = (token for token in vocabulary.of_type(TokenType.NORMAL) if len(token) > 1)
    needed = None if rules.whole_words else next(longer, None)
    if vocabulary.merges is None and needed is not None:
        raise AprError(
            f"GGUF {_KEY}merges is missing, without which no text gives {needed!r}",
            "download the file again",
        )
    # A token may begin with a space, never be empty: the separator is the first one after that.
    merges = [
        (m[:cut], m[cut + 1 :]) for m in vocabulary.merges or () if (cut := m.find(" ", 1)) > 0
    ]
    backend = _bpe(vocabulary, merges, ignore_merges=rules.whole_words)
    normalizer = rules.build_normalizer()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = rules.build()
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_tokenizer(pre: str | None) -> PreTokenizer:
    name = "default" if pre is None else pre
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise AprError(
            f"GGUF {_KEY}pre: pre-tokenizer {name!r} is not known (known: {known})",
            "import the model from its Hugging Face folder instead",
        )
    return PRE_TOKENIZERS[name]


def _sentence_piece(vocabulary: GgufVocabulary) -> Backend:
    if vocabulary.scores is None:
        raise AprError(f"GGUF {_KEY}scores is missing", "download the file again")
    vocabulary = _with_piece_spaces(vocabulary)
    backend = _bpe(
        vocabulary,
        merges_from_scores(vocabulary.tokens, vocabulary.scores or (), vocabulary.types),
        unk_token=vocabulary.special.get("unk_token"),
        fuse_unk=True,
        byte_fallback=TokenType.BYTE in vocabulary.types,
    )
    replace = normalizers.Replace(" ", _SPACE)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        # Before the text and after every added token, as the published Llama files and llama.cpp
        # have it (SentencePiece itself: before the text only).
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    else:
        backend.normalizer = replace
    backend.decoder = decoders.Sequence(steps)
    return backend


def _with_piece_spaces(vocabulary: GgufVocabulary) -> GgufVocabulary:
    """Spell user-defined runs of spaces as SentencePiece does (converters write real spaces)."""
    tokens = tuple(t.replace(" ", _SPACE) if t.isspace() else t for t in vocabulary.tokens)
    if len(set(tokens)) != len(tokens):
        return vocabulary
    return GgufVocabulary(**{**vars(vocabulary), "tokens": tokens})


def merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The BPE merges that SentencePiece scores imply, first to be applied first.

    Every way to cut a token into two tokens is a merge, ranked by the token's score; user-defined
    tokens come before all others. Control, unknown, unused and byte tokens are never merged into
    or from. Among the cuts of equal score, the longer left part goes first. This is the order of
    transformers' conversion. SentencePiece itself matches user-defined tokens before merging:
    of a run of 40 spaces in Gemma it takes 31 first, merging takes 16 and 24.
    """
    mergeable = {TokenType.NORMAL, TokenType.USER_DEFINED}
    ids = {t: i for i, t in enumerate(tokens) if types[i] in mergeable}
    ranked: list[tuple[bool, float, int, str, str]] = []
    for token, index in ids.items():
        ordinary = types[index] != TokenType.USER_DEFINED
        # Converters overwrite the scores of user-defined tokens; their order in the file stands.
        score = -scores[index] if ordinary else float(index)
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((ordinary, score, -cut, left, right))
    # The sort is stable: among equals, the order of the vocabulary stays.
    ranked.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in ranked]


def _bpe(vocabulary: GgufVocabulary, merges: list[tuple[str, str]], **options: Any) -> Backend:
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        return Backend(BPE(vocab=vocab, merges=merges, **options))
    except Exception as error:
        # The library raises bare Exception for a merge whose parts are not in the vocabulary.
        raise AprError(f"GGUF tokenizer: {error}", "the file is damaged") from error


def _add_special_tokens(backend: Backend, vocabulary: GgufVocabulary) -> None:
    control = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    control += [t for t in vocabulary.special.values() if t not in control]
    swallows = _tokens_that_swallow_spaces(vocabulary, control)
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True, rstrip=t in swallows) for t in control]
    )
    known = backend.get_vocab()
    # Runs of spaces are respelled above and found by merging; all others are matched as they are.
    defined = [t for t in vocabulary.of_type(TokenType.USER_DEFINED) if t in known]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in defined])


def _tokens_that_swallow_spaces(vocabulary: GgufVocabulary, control: Sequence[str]) -> set[str]:
    """Phi-3's special tokens take white space after them along, which GGUF cannot say."""
    if vocabulary.architecture != "phi3" or vocabulary.model != "llama":
        return set()
    return set(control) - {"<unk>", "<s>", "<|endoftext|>"}


def _unique_tokens(raw: Sequence[str]) -> tuple[str, ...]:
    tokens = tuple(t or f"[EMPTY_{index}]" for index, t in enumerate(raw))
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        double = next(t for t in tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
        raise AprError(f"GGUF {_KEY}tokens: {double!r} is listed twice", "the file is damaged")
    return tokens


def _required(metadata: Mapping[str, Any], name: str) -> Any:
    value = metadata.get(_KEY + name)
    if value is None:
        raise AprError(
            f"GGUF metadata: {_KEY}{name} is missing, the file has no tokenizer",
            "use a complete GGUF file or the model's Hugging Face folder",
        )
    return value


def _token_id(metadata: Mapping[str, Any], key: str, vocab_size: int) -> int | None:
    value = metadata.get(_KEY + key)
    # Converters write an all-ones id for "none".
    return int(value) if value is not None and 0 <= int(value) < vocab_size else None
