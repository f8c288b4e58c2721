"""Code blocks of a chat answer: where they begin and end. Pure functions."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apr.eval.code.prefixes import long_strings, longest_prefix, parse

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+.-]*)[^\n]*$", re.MULTILINE)
CODE_LINE = re.compile(
    r"^[ \t]*(from\s+[\w.]+\s+import\b|import\s|def\s|class\s|@\w|async\s)", re.M
)
# A fence, alone on its line or behind words, with the rest of the line.
_MARK = re.compile(
    r"^(?P<before>(?:[^`\n]|`{1,2}(?!`))*?)(?P<mark>`{3,}|(?<![^\s])~{3,})(?P<rest>[^`\n]*)$", re.M
)
_LANGUAGE = re.compile(r"[ \t]*\{?[\w+.-]*\}?[ \t]*")
_QUOTED = re.compile(r"^>[ \t]*(```|~~~)", re.M)
_PREFORMATTED = re.compile(r"<pre\b[^>]*>\s*(?:<code\b[^>]*>)?(.*?)(?:</code>\s*)?</pre>", re.S)
_TAGS = re.compile(r"^[ \t]*(?:\[/?[A-Za-z]\w*\]|</?[A-Za-z][^<>\n]*>)+[ \t]*$", re.M)
_PYTHON = re.compile(r"(?i)\{?\.?(python\d?|py\d?|pycon|ipython\d?)\b")
_MAX_PARTS = 20


@dataclass(frozen=True)
class Block:
    """Text of a block; mark: the fence that opens it."""

    text: str
    mark: str


def plain_markdown(text: str) -> str:
    """An answer with unix line ends, out of a quotation and of HTML."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _QUOTED.search(text):
        text = re.sub(r"^> ?", "", text, flags=re.M)
    if FENCE.search(text) is None:
        text = _PREFORMATTED.sub(lambda m: f"\n```\n{html.unescape(m[1])}\n```\n", text)
    return text


def fenced_blocks(text: str, opened: bool = False) -> list[str]:
    """Contents of markdown code blocks; the last may lack its end.

    A fence may stand behind words, and inside a string of the code it is none. One that names a
    language always opens a block, so a missing end costs one block only. A block around blocks
    (four ticks around three) is those. opened: the text begins inside a block.
    """
    blocks, _ = parted(text, opened)
    return blocks


def parted(text: str, opened: bool = False) -> tuple[list[str], list[str]]:
    """The blocks of a text (see `fenced_blocks`), and what is around them."""
    blocks: list[str] = []
    around: list[str] = []
    for block, before in _blocks(text, opened):
        around.append(before)
        if block is None:
            continue
        nested = len(block.mark) > 3 and len(_marks(block.text)) > 1 and not parse(block.text)
        blocks += fenced_blocks(block.text) if nested else [block.text]
    return blocks, around


def at_tags(text: str) -> list[str]:
    """The parts of a text between lines that are tags (`[PYTHON]`, `</answer>`)."""
    parts = _TAGS.split(text) if _TAGS.search(text) else [text]
    return [part for part in parts if part.strip()][:_MAX_PARTS]


def _blocks(text: str, opened: bool) -> Iterator[tuple[Block | None, str]]:
    """Each block, with the text between it and the one before; last the text behind all."""
    marks = _marks(text)
    at, number = 0, 0
    mark, start = ("```", 0) if opened else ("", -1)
    while True:
        if start < 0:
            if number == len(marks):
                yield None, text[at:]
                return
            opener = marks[number]
            number += 1
            mark, start = opener["mark"], _begin(opener)
            before = text[at : opener.start("mark")]
        else:
            before = ""
        number = _end(text, start, mark, marks, number)
        if number == len(marks):
            yield Block(text[start:], mark), before
            return
        closer = marks[number]
        yield Block(text[start : closer.start("mark")], mark), before
        if _opens(closer["rest"]):
            at, mark, start = closer.end(), closer["mark"], _begin(closer)
        else:
            at, start = closer.end("mark"), -1
        number += 1


def _marks(text: str) -> list[re.Match[str]]:
    """The fences of a text. Behind words there is nothing but a language after one."""
    found = _MARK.finditer(text)
    return [m for m in found if not m["before"].strip() or _LANGUAGE.fullmatch(m["rest"])]


def _begin(opener: re.Match[str]) -> int:
    """Where the code of a block begins: below its fence, or behind it on the same line."""
    code = re.match(r"[ \t]*(?:[\w+.-]+[ \t]+)?(?=\S)", opener["rest"])
    for skipped in (0, code.end() if code else 0):
        if CODE_LINE.match(opener["rest"][skipped:]):
            return opener.start("rest") + skipped
    return min(opener.end() + 1, len(opener.string))


def _opens(rest: str) -> bool:
    """Whether a fence with this behind it opens a block, though one is open."""
    words = rest.split()
    if not words:
        return False
    return len(words) == 1 or "=" in rest or _PYTHON.match(words[0]) is not None


def _end(text: str, start: int, mark: str, marks: Sequence[re.Match[str]], number: int) -> int:
    """The number, from `number` on, of the fence that ends a block; that of none: how many."""
    strings = long_strings(text, start)
    string = (0, 0)
    first = None  # the first fence that is inside a string, if the block is read rightly
    for found in range(number, len(marks)):
        fence = marks[found]
        behind = fence["before"].strip() != ""
        if not fence["mark"].startswith(mark) or (behind and _opens(fence["rest"])):
            continue
        at = fence.start("mark")
        while string[1] <= at and (following := next(strings, None)) is not None:
            string = following
        if string[0] < at < string[1]:
            first = found if first is None else first
        else:
            return _checked(text[start:at], start, marks, first, found)
    return _checked(text[start:], start, marks, first, len(marks))


def _checked(
    code: str, start: int, marks: Sequence[re.Match[str]], first: int | None, found: int
) -> int:
    """`found` if the code up to it is Python beyond the fence inside it, else that fence."""
    if first is None:
        return found
    read = longest_prefix(code)
    beyond = start + len(read) > marks[first].end() and parse(read) is not None
    return found if beyond else first
