"""Rows of training data to token ids and what of them is learned.

Shapes, told apart by their keys:
    {instruction, response[, system, input]}   one question and its answer ("output" is "response")
    {messages: [{role, content}, ...]}         a conversation; every assistant turn is learned
    {prompt, completion}                       text that goes on, or lists of messages
    {text}                                     all of it is learned ("content" is "text")
Questions and conversations are put in the model's chat template. Learned are the answers' tokens
up to and including the one that ends the turn; nothing the model would not write itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apr.common.errors import AprError
from apr.text import Tokenizer
from apr.train.packing import Document

SHAPES = "instruction and response, messages, prompt and completion, or text"
# For models that have no chat template.
PLAIN_QUESTION = "### Instruction:\n{question}\n\n### Response:\n"


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
