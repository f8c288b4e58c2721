"""Token ids to text one at a time, such that the pieces join to what decoding all at once gives.

Three kinds of decoder, told apart by the tokenizer's own description of it:

bytes   byte-level BPE: every token is a string of bytes; characters come out as their last byte
        comes in.
pieces  SentencePiece style: tokens are text, rare characters are runs of <0xNN> tokens. Whether
        such a run is valid UTF-8 is known only when it ends (an invalid run becomes one
        replacement character per byte, valid parts included), so a run is shown when it is over.
whole   anything else (word pieces, clean-up rules that look back): shown at the end.

Stop strings cut such a stream: the output ends before the first of them, never inside one.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, Protocol

from tokenizers import Tokenizer as Backend

from apr.common.errors import UsageError

DecoderKind = Literal["bytes", "pieces", "whole"]


class StreamDecoder(Protocol):
    """Incremental decoding of one sequence."""

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain by now (maybe "")."""
        ...

    def flush(self) -> str:
        """The sequence has ended: return the rest. The decoder is then used up."""
        ...


@lru_cache(maxsize=1)
def byte_characters() -> dict[str, int]:
    """GPT-2's byte alphabet: the printable character that stands for each of the 256 bytes.

    Printable Latin-1 stands for itself; the other bytes, in order, take U+0100 and up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


def token_bytes(token: str) -> bytes:
    """The bytes a byte-level token stands for (its UTF-8 where it is not in the alphabet)."""
    alphabet = byte_characters()
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


def decoder_kind(backend: Backend) -> DecoderKind:
    """How text may be streamed out of this tokenizer (see the module's docstring)."""
    description = backend.decoder
    if description is None:
        return "whole"
    steps = _decoder_steps(json.loads(description.__getstate__()))
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return "bytes"
    fuse = names.index("Fuse") if "Fuse" in names else len(names)
    # Before Fuse each step sees one token; after it only a cut at the very start is harmless.
    before_ok = all(n in ("Replace", "ByteFallback", "Metaspace") for n in names[:fuse])
    after_ok = all(s["type"] == "Strip" and s.get("stop", 0) == 0 for s in steps[fuse + 1 :])
    return "pieces" if names and before_ok and after_ok else "whole"


def _decoder_steps(state: dict) -> list[dict]:
    if state["type"] == "Sequence":
        return [inner for step in state["decoders"] for inner in _decoder_steps(step)]
    return [state]


class ByteStream:
    """Byte-level BPE: feed bytes to an incremental UTF-8 decoder.

    spelled: tokens that were added to the vocabulary, whose text is what they say, not bytes in
    the vocabulary's alphabet.
    """

    def __init__(self, backend: Backend, skip: frozenset[int], spelled: Mapping[int, str]) -> None:
        self._backend = backend
        self._skip = skip
        self._spelled = spelled
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        if token_id in self._spelled:
            return self._utf8.decode(self._spelled[token_id].encode())
        token = self._backend.id_to_token(token_id)
        return "" if token is None else self._utf8.decode(token_bytes(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class PieceStream:
    """SentencePiece style: decode chunk by chunk, each chunk ending in a token that is text.

    Every chunk is decoded behind the one before it, so that only the first of the sequence is
    treated as such (there the leading space is dropped).
    """

    def __init__(self, backend: Backend, skip: frozenset[int], context: Sequence[int] = ()) -> None:
        self._backend = backend
        self._skip = skip
        self._before: list[int] = []
        self._chunk: list[int] = []
        for token_id in context:
            self.push(token_id)
        self.flush()

    def push(self, token_id: int) -> str:
        token = None if token_id in self._skip else self._backend.id_to_token(token_id)
        if not token:
            return ""
        self._chunk.append(token_id)
        return "" if _is_byte_token(token) else self._emit()

    def flush(self) -> str:
        return self._emit() if self._chunk else ""

    def _emit(self) -> str:
        known = self._decode(self._before)
        both = self._decode(self._before + self._chunk)
        self._before, self._chunk = self._chunk, []
        return both[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        # Skipped tokens never get here; the rest must not be dropped.
        return self._backend.decode(ids, skip_special_tokens=False)


class WholeStream:
    """Text that cannot be told before the end is told at the end."""

    def __init__(self, backend: Backend, skip: frozenset[int]) -> None:
        self._backend = backend
        self._skip = skip
        self._ids: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id not in self._skip:
            self._ids.append(token_id)
        return ""

    def flush(self) -> str:
        ids, self._ids = self._ids, []
        return self._backend.decode(ids, skip_special_tokens=False)


def _is_byte_token(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


class StopMatcher:
    """Cuts streamed text at the earliest start of any stop string.

    However the text is cut into pieces, what `push` and `flush` return, joined, equals
    `text[:i]` with i the smallest `text.find(stop)` over all stops (the whole text where none
    occurs). Text that may still become a stop string is held back until that is decided; the
    same holds for a found stop when a longer one that began earlier may still be completed.

    stops: the stop strings; none is allowed, an empty string is not.
    matched: the stop string that was found, None so far. Generation should end once it is set.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise UsageError("stop strings: got one string", "pass a list of strings")
        if any(not stop for stop in stops):
            raise UsageError("stop strings: one of them is empty", "remove it")
        self.stops = tuple(stops)
        self.matched: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece of text; return what can be shown by now."""
        if self.matched is not None or not text:
            return ""
        self._held += text
        found = self._earliest_match()
        pending = self._earliest_partial()
        if found is not None and found[0] <= pending:
            return self._cut(*found)
        emit, self._held = self._held[:pending], self._held[pending:]
        return emit

    def flush(self) -> str:
        """The text has ended: return what was held back, cut at a stop that was found in it."""
        if self.matched is not None:
            return ""
        found = self._earliest_match()
        if found is not None:
            return self._cut(*found)
        emit, self._held = self._held, ""
        return emit

    def _cut(self, start: int, stop: str) -> str:
        emit, self._held, self.matched = self._held[:start], "", stop
        return emit

    def _earliest_match(self) -> tuple[int, str] | None:
        matches = [(self._held.find(stop), stop) for stop in self.stops]
        return min((m for m in matches if m[0] >= 0), key=lambda m: m[0], default=None)

    def _earliest_partial(self) -> int:
        """Where the longest end of the held text that begins a stop string starts."""
        held = self._held
        for start in range(max(0, len(held) - self._longest() + 1), len(held)):
            tail = held[start:]
            if any(len(tail) < len(stop) and stop.startswith(tail) for stop in self.stops):
                return start
        return len(held)

    def _longest(self) -> int:
        return max(map(len, self.stops), default=0)
