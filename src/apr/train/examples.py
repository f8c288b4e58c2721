"""Rows of training data to token ids and what of them is learned; fill-in-the-middle.

Shapes, told apart by their keys:
    {instruction, response[, system, input]}   one question and its answer ("output" is "response")
    {messages: [{role, content}, ...]}         a conversation; every assistant turn is learned
    {prompt, completion}                       text that goes on, or lists of messages
    {text}                                     all of it is learned ("content" is "text")
Questions and conversations are put in the model's chat template. Learned are the answers' tokens
up to and including the one that ends the turn; nothing the model would not write itself.

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apr.common.errors import AprError, UsageError
from apr.text import FimFormat, FimOrder, Tokenizer, fim_format
from apr.train.packing import Document
from apr.train.train_settings import FimSettings

SHAPES = "instruction and response, messages, prompt and completion, or text"
# For models that have no chat template.
PLAIN_QUESTION = "### Instruction:\n{question}\n\n### Response:\n"
# What the order, begin and end add to a piece, and what cutting it in three may: sentinels, an end,
# a begin; a token more at each cut and at the end of the last line.
ADDED = 8
# What became of a text, for the account of the data.
LEFT_TO_RIGHT, TOO_LONG = "left to right", "left to right, longer than a sequence"


class BadRow(Exception):
    """Why a row cannot be learned from; the reader knows file and line."""


@dataclass(frozen=True)
class Span:
    """A piece of text, and whether the model is to learn to write it."""

    text: str
    trained: bool


def document_of(row: Mapping[str, Any], tokenizer: Tokenizer, *, chat: bool = False) -> Document:
    """Token ids of one row, uncut. chat: prompt and completion are a question and its answer.

    Raises BadRow.
    """
    if "messages" in row:
        return _conversation(_messages(row["messages"], "messages"), tokenizer)
    answer = "response" if "response" in row else "output"
    if "instruction" in row and answer in row:
        question = _text(row, "instruction")
        if row.get("input"):
            question += "\n\n" + _text(row, "input")
        system = _text(row, "system") if row.get("system") else ""
        return _question(question, _text(row, answer), system, tokenizer)
    if "prompt" in row and "completion" in row:
        if isinstance(row["prompt"], list):
            before = _messages(row["prompt"], "prompt")
            after = row["completion"]
            if isinstance(after, str):
                after = [{"role": "assistant", "content": after}]
            return _conversation([*before, *_messages(after, "completion")], tokenizer, len(before))
        prompt, completion = _text(row, "prompt"), _text(row, "completion")
        if chat:
            return _question(prompt, completion, "", tokenizer)
        return _continuation(prompt, completion, tokenizer)
    for key in ("text", "content"):
        if key in row:
            return text_document(_text(row, key), tokenizer)
    raise BadRow(f"its keys are {', '.join(map(str, row)) or 'none'}; expected are {SHAPES}")


def is_text(row: Mapping[str, Any]) -> bool:
    """Whether all of a row is learned, so that it may be cut anywhere."""
    others = {"messages", "instruction", "prompt"}
    return not others & row.keys() and ("text" in row or "content" in row)


def text_document(text: str, tokenizer: Tokenizer) -> Document:
    """A text and its end, all of it learned."""
    if not text.strip():
        raise BadRow("the text is empty")
    ids = with_end(encoded(tokenizer, text, special=True), tokenizer)
    return Document(np.array(ids, np.int32), np.ones(len(ids), bool))


def _question(question: str, answer: str, system: str, tokenizer: Tokenizer) -> Document:
    if not question.strip():
        raise BadRow("the instruction is empty")
    if tokenizer.chat_template is None:
        before = f"{system}\n\n" if system else ""
        prompt = before + PLAIN_QUESTION.format(question=question)
        return _continuation(prompt, answer, tokenizer)
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _conversation(messages, tokenizer)


def _continuation(prompt: str, completion: str, tokenizer: Tokenizer) -> Document:
    if not completion.strip():
        raise BadRow("the response is empty")
    spans = [Span(prompt, False), Span(completion, True)]
    return _encode_spans(spans, tokenizer, special=True)


def _conversation(
    messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, first: int = 0
) -> Document:
    """first: assistant turns before this one are context only."""
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
    if not turns:
        raise BadRow("there is no assistant turn to learn from")
    for index in turns:
        if not str(messages[index].get("content") or "").strip() and not messages[index].get(
            "tool_calls"
        ):
            raise BadRow("the response is empty")
    _refuse_special_text(messages, tokenizer)
    try:
        spans = _turn_spans(messages, turns, tokenizer)
        # Templates that rewrite earlier turns (dropping their reasoning): the last turn alone.
        spans = spans or _turn_spans(messages, turns[-1:], tokenizer)
    except AprError as error:
        raise BadRow(str(error)) from None
    if spans is None:
        raise BadRow("the chat template writes a finished answer otherwise than it asks for one")
    return _encode_spans(spans, tokenizer, special=False)


def _turn_spans(
    messages: Sequence[Mapping[str, Any]], turns: Sequence[int], tokenizer: Tokenizer
) -> list[Span] | None:
    """The rendered conversation cut at its answers; None if one does not follow its prompt."""
    spans: list[Span] = []
    done = ""
    for index in turns:
        prompt = tokenizer.render_chat(messages[:index], add_generation_prompt=True)
        whole = tokenizer.render_chat(messages[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            return None
        spans += [Span(prompt[len(done) :], False), Span(whole[len(prompt) :], True)]
        done = whole
    return spans


def _encode_spans(spans: Sequence[Span], tokenizer: Tokenizer, special: bool) -> Document:
    """special: add the tokens that begin every text. Each answer gets an end if it has none."""
    ids: list[int] = []
    trained: list[bool] = []
    text = ""
    for span in spans:
        text += span.text
        whole = encoded(tokenizer, text, special)
        # The prompt's tokens must be those of the prompt alone, as when the model is asked.
        added = whole[len(ids) :] if whole[: len(ids)] == ids else encoded(tokenizer, span.text)
        learned = [False] * len(added)
        if span.trained:
            ends = [i for i, token in enumerate(added) if token in tokenizer.eos_ids]
            if not ends:
                added = with_end(added, tokenizer)
                ends = [len(added) - 1]
            learned = [i <= ends[-1] for i in range(len(added))]
        ids += added
        trained += learned
    return Document(np.array(ids, np.int32), np.array(trained, bool))


def encoded(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    """A text's ids; special: with the token that begins every text. Raises BadRow."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=special))
    except AprError as error:
        raise BadRow(str(error)) from None


def with_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Ids that end with a token that ends a text."""
    if tokenizer.eos_id is None or (ids and ids[-1] in tokenizer.eos_ids):
        return ids
    return [*ids, tokenizer.eos_id]


def _refuse_special_text(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> None:
    """Text that spells a special token would become one: a turn that ends inside an answer."""
    special = [tokenizer.id_to_token(i) for i in tokenizer.special_ids]
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            spelled = next((token for token in special if token and token in content), None)
            if spelled:
                raise BadRow(f"its text spells the special token {spelled}")


def _messages(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key} is not a list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRow(f"{key} holds something that is no message with a role")
    return value


def _text(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise BadRow(f"{key} is no text")
    return row[key]


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
