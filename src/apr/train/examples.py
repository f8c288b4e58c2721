"""Examples of training data to token ids and what of them is learned; fill-in-the-middle.

Questions and conversations are put in the model's chat template. Learned are the answers' tokens
up to and including the one that ends the turn; nothing the model would not write itself. Each turn
is learned behind the very text the model is shown when it is asked for it: where a template writes
a conversation otherwise once it has gone on (drops earlier thoughts, say), its turns become
documents of their own.

Fill-in-the-middle (Bavarian et al. 2022, arXiv:2207.14255, section 3) is for rows of plain text:
with probability `rate` a document is cut at two places drawn uniformly among its characters, before
tokens are made, and put in the order PSM or SPM (their variant 2); every token of it is learned,
the end above all. What the model's family writes between the parts is `apr.text.fim`.

Levels:
    document   whole documents only; one that does not fit a sequence stays as it is (as Code
               Llama, arXiv:2308.12950, section 2.3), so no part of one is ever without the others
    context    documents are cut to fit sequences first, then each piece is transformed or not
               (Bavarian et al., section 4.4: better than cutting transformed documents)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from apr.common.errors import AprError, UsageError
from apr.data.training_rows import BadRow, Example, recognise, words_of
from apr.text import FimFormat, FimOrder, Tokenizer, fim_format
from apr.train.conversation import Span, conversation_spans
from apr.train.packing import Document
from apr.train.train_settings import FimSettings

# For models that have no chat template.
PLAIN_QUESTION = "### Instruction:\n{question}\n\n### Response:\n"
# What the order, begin and end add to a piece, and what cutting it in three may: sentinels, an end,
# a begin; a token more at each cut and at the end of the last line.
ADDED = 8
# What became of a text, for the account of the data.
LEFT_TO_RIGHT, TOO_LONG = "left to right", "left to right, longer than a sequence"


class LeftOut(BadRow):
    """Why a row is left out that is no error."""


@dataclass(frozen=True)
class Learned:
    """What a row gives. lost: what of it is not learned, a reason for each turn."""

    documents: list[Document]
    lost: tuple[str, ...] = ()


def learned_of(example: Example, tokenizer: Tokenizer, *, chat: bool = False) -> Learned:
    """Token ids of one row, uncut. chat: prompt and completion are a question and its answer.

    Raises BadRow.
    """
    if example.shape == "text":
        return Learned([text_document(example.response, tokenizer)])
    if example.shape == "prompt-completion" and not example.messages:
        if not chat:
            return Learned([_continuation(example.prompt, example.response, tokenizer)])
        turns = (("user", example.prompt), ("assistant", example.response))
        messages = tuple({"role": role, "content": content} for role, content in turns)
        example = replace(example, shape="instruction", messages=messages, learned=(1,))
    if example.shape == "instruction":
        question = example.messages[-2]["content"]
        if not question.strip():
            raise BadRow("the instruction is empty")
        if tokenizer.chat_template is None:
            before = [message["content"] for message in example.messages[:-2]]
            prompt = "\n\n".join([*before, PLAIN_QUESTION.format(question=question)])
            return Learned([_continuation(prompt, example.response, tokenizer)])
    return _conversation(example, tokenizer)


def document_of(fields: Mapping[str, Any], tokenizer: Tokenizer, *, chat: bool = False) -> Document:
    """The one document of a row. Raises BadRow, also where a row has several."""
    documents = learned_of(recognise(fields, ""), tokenizer, chat=chat).documents
    if len(documents) > 1:
        raise BadRow("the chat template writes its answers otherwise once others follow them")
    return documents[0]


def text_document(text: str, tokenizer: Tokenizer) -> Document:
    """A text and its end, all of it learned."""
    text, end = body_of(text, tokenizer)
    if not text.strip():
        raise BadRow("the text is empty")
    ids = with_end(encoded(tokenizer, text + end, special=True), tokenizer)
    return Document(np.array(ids, np.int32), np.ones(len(ids), bool))


def body_of(text: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """(a raw text without the token that is put before every text, and without an end it spells;
    that end).

    Raises BadRow where it spells a special token inside, unless it begins with one, as a
    conversation does that has been through a chat template.
    """
    text = text.removeprefix(_begin(tokenizer))
    special = _spelled(tokenizer.special_ids, tokenizer)
    bare, end = text.rstrip(), ""
    for token in _spelled(tokenizer.eos_ids, tokenizer):
        if bare.endswith(token):
            text, end = bare.removesuffix(token), token
    if not text.startswith(tuple(special)):
        _refuse_special(text, special)
    return text, end


def _begin(tokenizer: Tokenizer) -> str:
    """What is put before every text."""
    return "".join(_spelled(_begin_ids(tokenizer), tokenizer))


@lru_cache(maxsize=2)
def _begin_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    # Before a letter: some tokenizers put an end behind every text as well.
    whole, letter = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    return tuple(whole[: "".join(map(chr, whole)).index("".join(map(chr, letter)))])


def _spelled(ids: Iterable[int], tokenizer: Tokenizer) -> list[str]:
    return [token for token in map(tokenizer.id_to_token, ids) if token]


def _refuse_special(text: str, special: Iterable[str]) -> None:
    """Text that spells a special token would become one: a turn that ends inside an answer."""
    spelled = next((token for token in special if token in text), None)
    if spelled:
        raise BadRow(f"its text spells the special token {spelled}")


def _continuation(prompt: str, completion: str, tokenizer: Tokenizer) -> Document:
    if not completion.strip():
        raise BadRow("the response is empty")
    _, end = body_of(prompt + completion, tokenizer)
    prompt = prompt.removeprefix(_begin(tokenizer))
    spans = [Span(prompt, False), Span(completion.rstrip() if end else completion, True)]
    return _encode_spans(spans, tokenizer, raw=True)


def _conversation(example: Example, tokenizer: Tokenizer) -> Learned:
    """Raises BadRow, also for what the chat template leaves out."""
    if not example.learned:
        raise BadRow("there is no assistant turn to learn from")
    for index in example.learned:
        turn = example.messages[index]
        if not turn.get("content", "").strip() and "tool_calls" not in turn:
            raise BadRow("the response is empty")
    special = _spelled(tokenizer.special_ids, tokenizer)
    _refuse_special(words_of([example.messages, example.tools]), special)
    ends = _spelled(tokenizer.eos_ids, tokenizer)
    parts, lost = conversation_spans(example, tokenizer, ends)
    return Learned([_encode_spans(spans, tokenizer, raw=False) for spans in parts], lost)


def _encode_spans(spans: Sequence[Span], tokenizer: Tokenizer, raw: bool) -> Document:
    """raw: texts of the data, behind what begins every text; learned is all of an answer, else up
    to its end. Each answer gets an end if it has none.
    """
    ids: list[int] = []
    trained: list[bool] = []
    text = ""
    for span in spans:
        text += span.text
        whole = encoded(tokenizer, text, raw)
        # The prompt's tokens must be those of the prompt alone, as when the model is asked.
        added = whole[len(ids) :] if whole[: len(ids)] == ids else encoded(tokenizer, span.text)
        learned = [False] * len(added)
        if span.trained:
            ends = [] if raw else [i for i, token in enumerate(added) if token in tokenizer.eos_ids]
            if not ends:
                added = with_end(added, tokenizer)
                ends = [len(added) - 1]
            learned = [i <= ends[-1] for i in range(len(added))]
        ids += added
        trained += learned
    return Document(np.array(ids, np.int32), np.array(trained, bool))


def encoded(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    """A text's ids; special: with the token that begins every text. Raises BadRow."""
    begin = _begin_ids(tokenizer) if special else ()
    try:
        return [*begin, *tokenizer.encode(text, add_special_tokens=False)]
    except AprError as error:
        raise BadRow(error.message) from None


def with_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Ids that end with a token that ends a text."""
    if tokenizer.eos_id is None or (ids and ids[-1] in tokenizer.eos_ids):
        return ids
    return [*ids, tokenizer.eos_id]


def cut_in_three(text: str, random: np.random.Generator) -> tuple[str, str, str]:
    """(prefix, middle, suffix): two independent uniform places among the len(text) + 1 there are.

    Any part may be empty.
    """
    first, second = sorted(random.integers(0, len(text) + 1, 2).tolist())
    return text[:first], text[first:second], text[second:]


def draw_order(rate: float, spm_rate: float, random: np.random.Generator) -> FimOrder | None:
    """What becomes of a document; None: nothing."""
    if random.random() >= rate:
        return None
    return "spm" if random.random() < spm_rate else "psm"


def fim_transform(
    settings: FimSettings, tokenizer: Tokenizer, max_length: int
) -> Callable[[str, np.random.Generator], tuple[list[Document], list[str]]]:
    """What `read_documents` does with plain text: (text, random numbers) to documents of at most
    max_length tokens (or longer ones where nothing is transformed), and what became of them.

    Raises UsageError where the tokenizer lacks a token of the format.
    """
    form = fim_format(tokenizer, settings.tokens)
    form.training_ids(tokenizer, ("", "", ""), "psm")  # every token is there
    usual = 0.5 if "spm" in form.orders else 0.0
    spm_rate = usual if settings.spm_rate is None else settings.spm_rate

    def one(text: str, random: np.random.Generator) -> tuple[Document | None, str]:
        order = draw_order(settings.rate, spm_rate, random)
        parts = cut_in_three(text, random)
        if order is None:
            return None, LEFT_TO_RIGHT
        ids = _ids(form, tokenizer, parts, order)
        return (None, TOO_LONG) if len(ids) > max_length else (_learned(ids), order.upper())

    def transform(text: str, random: np.random.Generator) -> tuple[list[Document], list[str]]:
        whole = text_document(text, tokenizer)
        text, _ = body_of(text, tokenizer)
        if settings.level == "document":
            found, kind = one(text, random)
            return [found or whole], [kind]
        documents, kinds = [], []
        pieces = list(pieces_that_fit(text, tokenizer, max(1, max_length - ADDED)))
        for number, piece in enumerate(pieces, 1):
            found, kind = one(piece, random)
            if found is None:
                ids = encoded(tokenizer, piece, special=number == 1)
                found = _learned(with_end(ids, tokenizer) if number == len(pieces) else ids)
            documents.append(found)
            kinds.append(kind)
        return documents, kinds

    return transform


def pieces_that_fit(text: str, tokenizer: Tokenizer, room: int) -> Iterator[str]:
    """A text in pieces of about `room` tokens at most, cut at line ends where lines fit."""
    piece, size = "", 0
    for line in text.splitlines(keepends=True):
        length = len(encoded(tokenizer, line))
        # A character is four tokens at most (its bytes).
        step = max(1, room // 4) if length > room else len(line)
        for part in (line[i : i + step] for i in range(0, len(line), step)):
            length = length if step == len(line) else len(encoded(tokenizer, part))
            if piece and size + length > room:
                yield piece
                piece, size = "", 0
            piece, size = piece + part, size + length
    if piece:
        yield piece


def _ids(
    form: FimFormat, tokenizer: Tokenizer, parts: tuple[str, str, str], order: FimOrder
) -> list[int]:
    try:
        return form.training_ids(tokenizer, parts, order)
    except UsageError as error:
        raise BadRow(error.message) from None


def _learned(ids: list[int]) -> Document:
    return Document(np.array(ids, np.int32), np.ones(len(ids), bool))
