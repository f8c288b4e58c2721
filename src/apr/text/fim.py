"""Fill in the middle: how a model was trained to see what is before and after a gap.

Orders (Bavarian et al. 2022, arXiv:2207.14255, sections 3 and 3.1; their "SPM variant 2"):
    PSM   <PRE> prefix <SUF> suffix <MID>          and the model writes the middle
    SPM   <PRE> <SUF> suffix <MID> prefix          so that prefix and middle touch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apr.common.errors import UsageError
from apr.text.tokenizer import Tokenizer

FimOrder = Literal["psm", "spm"]


@dataclass(frozen=True)
class FimFormat:
    """One family's tokens. end: what ends a middle in training ("" for the tokenizer's own end).
    ends: further tokens that end one, where the vocabulary has them, beside the tokenizer's own
    end tokens and the three above.

    orders: what the family was trained on. suffix_mark: a character that keeps the tokenizer from
    putting a space before the suffix; its own tokens are taken away again. joined: in training,
    prefix and middle of SPM are encoded as one text (Code Llama, arXiv:2308.12950, section 2.3),
    not apart (Bavarian et al.).
    """

    name: str
    prefix: str
    suffix: str
    middle: str
    end: str = ""
    ends: tuple[str, ...] = ()
    orders: tuple[FimOrder, ...] = ("psm", "spm")
    suffix_mark: str = ""
    joined: bool = False

    def encode(
        self, tokenizer: Tokenizer, prefix: str, suffix: str, order: FimOrder = "psm"
    ) -> list[int]:
        """The prompt's ids. Prefix and suffix are encoded apart, as in training.

        Raises UsageError for an order the family was not trained on, and for text that spells
        one of the three tokens where the tokenizer cannot take it as plain text.
        """
        if order not in self.orders:
            raise UsageError(
                f"{order.upper()} prompts: {self.name} models were trained on"
                f" {' and '.join(self.orders).upper()} only"
            )
        before, after = _plain(tokenizer, prefix), self._inner(tokenizer, suffix)
        return self._prompt(tokenizer, before, after, order)

    def training_ids(
        self, tokenizer: Tokenizer, parts: tuple[str, str, str], order: FimOrder
    ) -> list[int]:
        """A whole document, whatever `orders` says: the prompt, the middle and its end.

        parts: prefix, middle, suffix. Raises UsageError as `encode` does.
        """
        prefix, middle, suffix = parts
        if order == "spm" and self.joined:
            before, filled = _plain(tokenizer, prefix + middle), list[int]()
        else:
            before, filled = _plain(tokenizer, prefix), self._inner(tokenizer, middle)
        prompt = self._prompt(tokenizer, before, self._inner(tokenizer, suffix), order)
        if set(self._marks(tokenizer)).intersection(filled):
            raise UsageError("the text spells a fill-in-the-middle token", "change it")
        return [*prompt, *filled, self.end_id(tokenizer)]

    def end_id(self, tokenizer: Tokenizer) -> int:
        """What ends a middle in training."""
        own = tokenizer.token_to_id(self.end) if self.end else None
        found = tokenizer.eos_id if own is None else own
        if found is None:
            raise UsageError("the tokenizer has no token that ends a text")
        return found

    def _prompt(
        self, tokenizer: Tokenizer, before: list[int], after: list[int], order: FimOrder
    ) -> list[int]:
        pre, suf, mid = self._marks(tokenizer)
        if {pre, suf, mid}.intersection([*before, *after]):
            raise UsageError("the text around the gap spells a token of the prompt", "change it")
        start = _begin_ids(tokenizer)
        if order == "spm":
            return [*start, pre, suf, *after, mid, *before]
        return [*start, pre, *before, suf, *after, mid]

    def _inner(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Ids of a text that follows a token: no space is put before it."""
        mark = _plain(tokenizer, self.suffix_mark)
        return _plain(tokenizer, self.suffix_mark + text)[len(mark) :]

    def _marks(self, tokenizer: Tokenizer) -> list[int]:
        return [_id(tokenizer, token) for token in (self.prefix, self.suffix, self.middle)]

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The ids at which a middle is over."""
        tokens = (self.prefix, self.suffix, self.middle, self.end, *self.ends)
        found = (tokenizer.token_to_id(token) for token in tokens if token)
        return tokenizer.eos_ids.union(i for i in found if i is not None)


FORMATS: tuple[FimFormat, ...] = (
    # README of QwenLM/Qwen2.5-Coder. CodeGemma spells its tokens the same.
    FimFormat(
        name="Qwen2.5-Coder",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        end="<|endoftext|>",
        ends=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
        orders=("psm",),
    ),
    # meta-llama/codellama, llama/generation.py and tokenizer.py. Its tokenizer begins a text with
    # a space; a suffix must not get one.
    FimFormat(
        name="Code Llama",
        prefix="▁<PRE>",
        suffix="▁<SUF>",
        middle="▁<MID>",
        end="▁<EOT>",
        suffix_mark="☺",
        joined=True,
    ),
    # bigcode-evaluation-harness, santacoder_fim.py; both orders in training (arXiv:2305.06161).
    FimFormat(
        name="StarCoder",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        end="<|endoftext|>",
        ends=("<fim_pad>", "<file_sep>", "<filename>", "<|filename|>", "<reponame>"),
    ),
    FimFormat(
        name="SantaCoder",
        prefix="<fim-prefix>",
        suffix="<fim-suffix>",
        middle="<fim-middle>",
        end="<|endoftext|>",
        ends=("<fim-pad>", "<|filename|>"),
    ),
    # README of deepseek-ai/DeepSeek-Coder.
    FimFormat(
        name="DeepSeek-Coder",
        prefix="<｜fim▁begin｜>",
        suffix="<｜fim▁hole｜>",
        middle="<｜fim▁end｜>",
        end="<｜end▁of▁sentence｜>",
        ends=("<|EOT|>",),
        orders=("psm",),
    ),
)


def around(text: str, marker: str) -> tuple[str, str]:
    """What is before and after the one place a marker stands at. Raises UsageError."""
    count = text.count(marker) if marker else 0
    if count != 1:
        raise UsageError(
            f"the text to fill has {marker or 'an empty marker'} {count} times",
            "mark the one gap with it, or name another `marker`",
        )
    before, _, after = text.partition(marker)
    return before, after


def fim_format(tokenizer: Tokenizer, named: Sequence[str] = ()) -> FimFormat:
    """The model's format, or one of three named tokens: for prefix, suffix, middle.

    named: tokens of the vocabulary that the model has no better use for, e.g. `<jupyter_code>`.
    Raises UsageError saying which token is missing.
    """
    if not named:
        found = fim_format_for(tokenizer)
        if found is None:
            known = ", ".join(f"{f.prefix} ({f.name})" for f in FORMATS)
            raise UsageError(
                f"the tokenizer has no tokens for filling in the middle: none of {known}",
                "`fim_tokens` PREFIX,SUFFIX,MIDDLE names three others of its tokens",
            )
        return found
    return _named_format(tokenizer, named, "`fim_tokens`")


def _named_format(tokenizer: Tokenizer, named: Sequence[str], where: str) -> FimFormat:
    if len(named) != 3 or len(set(named)) != 3:
        raise UsageError(
            f"{where} {','.join(named)}: three different tokens are needed",
            "for prefix, suffix and middle",
        )
    for token in named:
        if tokenizer.token_to_id(token) is None:
            raise UsageError(f"{where}: the tokenizer has no token {token}")
        if token in tokenizer.special_tokens.values():
            raise UsageError(f"{where}: {token} has another use in this model")
    prefix, suffix, middle = named
    return FimFormat("named", prefix, suffix, middle)


def fim_format_for(tokenizer: Tokenizer) -> FimFormat | None:
    """The format of the tokens that the model's files name, or else one whose three tokens the
    vocabulary has; None for a model without them.

    Having the tokens does not prove that a model was trained to use them.
    """
    if tokenizer.fim_tokens:
        own = (f for f in FORMATS if (f.prefix, f.suffix, f.middle) == tokenizer.fim_tokens)
        return next(own, None) or _named_format(tokenizer, tokenizer.fim_tokens, "its files")
    for known in FORMATS:
        tokens = (known.prefix, known.suffix, known.middle)
        if all(tokenizer.token_to_id(token) is not None for token in tokens):
            return known
    return None


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UsageError(f"the tokenizer has no {token}", "use a model with fill-in-the-middle")
    return found


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    if not text:
        return []
    return tokenizer.encode(text, add_special_tokens=False, parse_special=False)


def _begin_ids(tokenizer: Tokenizer) -> Sequence[int]:
    """The begin token, where this tokenizer puts one in front."""
    begin = tokenizer.bos_id
    return [begin] if begin is not None and begin in tokenizer.encode("")[:1] else []
