"""Conversations in a model's chat template: what it is asked for each turn, and what it answers.

A turn is rendered as it is when the model is asked for it: what comes before it with the header of
an answer, and the same with the turn. Where the second text goes on from the first, the rest is
the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apr.common.errors import AprError
from apr.data.training_rows import BadRow, Example, Message, tool_names
from apr.text import Tokenizer

# A prompt that ends by opening a thought.
OPENED_THOUGHT = re.compile(r"(?:<\w+>|\[\w+\])\s*$")


@dataclass(frozen=True)
class Span:
    """A piece of text, and whether the model is to learn to write it."""

    text: str
    trained: bool


def conversation_spans(
    example: Example, tokenizer: Tokenizer, ends: Sequence[str]
) -> tuple[list[list[Span]], tuple[str, ...]]:
    """The documents of a conversation, in the first form of it that the template writes whole; why
    turns are not learned. ends: texts of the tokens that end a turn.

    Raises BadRow, also for what the template leaves out.
    """
    failures: list[BadRow] = []
    for messages, variables in _forms(example.messages):
        try:
            found, lost = _turns(
                _Chat(messages, example.tools, variables, tokenizer), example.learned
            )
            return _joined(found, ends), lost
        except BadRow as error:
            failures.insert(0, error)
        except AprError as error:
            failures.append(BadRow(error.message))
    raise failures[0]


def _forms(
    messages: Sequence[Message],
) -> Iterator[tuple[list[dict[str, Any]], dict[str, bool]]]:
    """What templates may want of one and the same conversation: arguments of tools as objects or
    as text, silence as no content or an empty one, thinking switched on.
    """
    calls = any("tool_calls" in turn for turn in messages)
    thinks = any(_thought_of(turn) for turn in messages)
    for variables in ({}, dict.fromkeys(("enable_thinking", "thinking"), True))[: 1 + thinks]:
        for as_text in (False, True)[: 1 + calls]:
            for silence in ({"content": ""}, {})[: 1 + calls]:
                yield (
                    [{**silence, **turn, **_calls_of(turn, as_text)} for turn in messages],
                    variables,
                )


def _calls_of(turn: Message, as_text: bool) -> dict[str, Any]:
    calls = turn.get("tool_calls")
    if not (calls and as_text):
        return {}
    functions = [call["function"] for call in calls]
    texts = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
    return {
        "tool_calls": [
            {**call, "function": {**call["function"], "arguments": text}}
            for call, text in zip(calls, texts, strict=True)
        ]
    }


def _thought_of(turn: Message) -> str:
    """What an assistant turn thinks before it speaks, "" for nothing."""
    thought, closed, _ = str(turn.get("content", "")).partition("</think>")
    written = thought.strip().removeprefix("<think>") if closed else ""
    return str(turn.get("reasoning_content", written)).strip()


@dataclass(frozen=True)
class _Chat:
    """A conversation in one form, and what writes it."""

    messages: list[dict[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]
    tokenizer: Tokenizer

    def text(self, count: int, ask: bool) -> str:
        """The first messages. ask: with the header of the answer to them."""
        tools = self.tools or None
        return self.tokenizer.render_chat(
            self.messages[:count], add_generation_prompt=ask, tools=tools, **self.variables
        )


def _turns(chat: _Chat, learned: Sequence[int]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(what the model is asked, its answer) of each turn; why others are not learned."""
    found: list[tuple[str, str]] = []
    lost = []
    for index in learned:
        if not any(turn["role"] in ("user", "tool") for turn in chat.messages[:index]):
            lost.append("a turn that nobody asks for opens the conversation")
            continue
        asked = _asked(chat, index)
        if asked is None:
            lost.append("the chat template writes a finished answer otherwise than it asks for one")
            continue
        _refuse_omissions(chat, index, *asked)
        if not _holds(asked[1], _words_of(chat.messages[index])):
            lost.append("the chat template leaves out the words beside a tool call")
        found.append(asked)
    if not found:
        raise BadRow(lost[0])
    return found, tuple(lost)


def _words_of(turn: Message) -> str:
    """What a turn says when it has thought."""
    return str(turn.get("content", "")).rpartition("</think>")[2]


def _joined(asked: Sequence[tuple[str, str]], ends: Sequence[str]) -> list[list[Span]]:
    """(prompt, answer) of turns as documents: a turn whose prompt goes on from the turn before it
    stands in the same one. ends: of turns; what a template writes behind one may differ.
    """
    found: list[list[Span]] = []
    before = ""
    for prompt, answer in asked:
        last = found[-1].pop().text if found else ""
        cuts = [last.find(end) + len(end) for end in ends if end in last]
        stems = (last, last[: min(cuts, default=0)])
        stem = next((stem for stem in stems if stem and prompt.startswith(before + stem)), "")
        if found:
            found[-1].append(Span(stem or last, True))
        if not stem:
            found.append([])
        done = len(before + stem) if stem else 0
        found[-1] += [Span(prompt[done:], False), Span(answer, True)]
        before = prompt
    return found


def _asked(chat: _Chat, index: int) -> tuple[str, str] | None:
    """(what the model is shown before a turn, what it then writes); None where the template tells
    them not apart.
    """
    prompt, whole = chat.text(index, True), chat.text(index + 1, False)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    # The question opens a thought that finished turns are written without.
    opened = OPENED_THOUGHT.search(prompt)
    if opened is None or not whole.startswith(prompt[: opened.start()]):
        return None
    tag = opened[0].strip()
    answer = whole[opened.start() :].removeprefix(tag).lstrip()
    close = f"{tag[0]}/{tag[1:]}"
    if close not in answer:
        answer = f"{_thought_of(chat.messages[index])}\n{close}\n\n{answer}"
    return prompt, answer


def _refuse_omissions(chat: _Chat, index: int, prompt: str, answer: str) -> None:
    """Raises BadRow for what the row says and the template does not write."""
    turn = chat.messages[index]
    missing = None
    if not all(name in prompt for name in tool_names(chat.tools)):
        missing = "`tools`"
    elif not all(name in answer for name in tool_names(turn.get("tool_calls", ()))):
        missing = "tool calls"
    elif not _holds(answer, _thought_of(turn)):
        missing = "`reasoning_content`" if "reasoning_content" in turn else "thought"
    elif "tool_calls" not in turn and not _holds(answer, _words_of(turn)):
        missing = "answer"
    for number, before in enumerate(chat.messages[:index], 1):
        if before["role"] != "assistant" and not _holds(prompt, before.get("content", "")):
            missing = f"message {number}, of role {before['role']}"
        elif not all(name in prompt for name in tool_names(before.get("tool_calls", ()))):
            missing = "tool calls"
    if missing:
        raise BadRow(f"the chat template leaves out its {missing}")


def _holds(whole: str, part: str) -> bool:
    """Whether a text was written, as it is or as JSON, white space aside."""
    if part.strip() in whole:
        return True
    squeezed = "".join(whole.split())
    forms = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
    return any("".join(form.split()) in squeezed for form in forms)
