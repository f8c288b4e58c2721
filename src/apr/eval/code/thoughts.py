"""What a model thinks before it answers is no part of its answer. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr.eval.code.fences import FENCE

THINK, END = "<think>\n", "\n</think>\n\n"
_WORDS = r"(?:[\w-]+:)?(?:think(?:ing)?|thoughts?|reasoning)"
# As the families write it: most of them, Magistral, Kimi, OpenThoughts, gpt-oss.
_OPENS = re.compile(
    rf"^(?:<{_WORDS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<\n]*<\|message\|>)",
    re.M,
)
# Not where code or prose quotes it.
_CLOSES = re.compile(
    rf"(?<![\"'\\])(?<![^`]`)(?:</{_WORDS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
    r"|<\|channel\|>final<\|message\|>)(?![\"']|`(?!``))"
)


@dataclass(frozen=True)
class Said:
    """An answer without its thoughts. unfinished: it ended within one."""

    text: str
    unfinished: bool = False


def without_thoughts(text: str) -> Said:
    """What follows a chat model's thoughts; nothing where the last one does not end.

    A thought begins at the start of a line outside code. Where only its end is there, it began in
    the prompt, or in a template.
    """
    kept, rest, unfinished = "", text.lstrip(), False
    while not unfinished and (opener := _opener(rest)) is not None:
        kept += rest[: opener.start()]
        closer = _CLOSES.search(rest, opener.end())
        unfinished = closer is None
        rest = "" if closer is None else rest[closer.end() :].lstrip("\n")
    answer = kept + rest
    ends = [found for found in _CLOSES.finditer(answer) if _is_end(answer, found)]
    if ends:
        answer = answer[ends[-1].end() :].lstrip("\n")
    if unfinished and FENCE.search(answer) is None:
        answer = ""
    return Said(answer if answer != text.lstrip() else text, unfinished)


def with_reasoning(reasoning: object, text: str, finish_reason: str) -> str:
    """What a model wrote, where its thoughts come apart from its answer. A thought that was cut
    has no end.
    """
    if not (isinstance(reasoning, str) and reasoning.strip()):
        return text
    cut = finish_reason == "length" and not text.strip()
    return f"{THINK}{reasoning.strip()}" + ("" if cut else END + text)


def thought_begun(prompt: str) -> str:
    """The beginning of a thought that a prompt ends with; empty where it ends with none."""
    last = prompt.rstrip().rpartition("\n")[2]
    found = re.search(rf"(?:<{_WORDS}>|\[THINK\]|◁think▷)$", last)
    return f"{found[0]}\n" if found else ""


def _opener(text: str) -> re.Match[str] | None:
    """The first beginning of a thought that is not inside a block of code."""
    for found in _OPENS.finditer(text):
        if len(FENCE.findall(text, 0, found.start())) % 2 == 0:
            return found
    return None


def _is_end(text: str, found: re.Match[str]) -> bool:
    """Whether the end of a thought whose beginning is not there is one, and not a part of code."""
    line = text.rfind("\n", 0, found.start()) + 1
    alone = not text[line : found.start()].strip() or text[found.end() : found.end() + 1] in "\n"
    return alone or len(FENCE.findall(text, 0, found.start())) % 2 == 0
