"""Text that others wrote: a model, a program, a server. For a terminal, a table, a database."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything spelled that does not print, as `\\x1b` or `\\ud800`, but line ends
    and tabs: what reaches a terminal is neither a command to it nor an error in it.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _spelled(c) for c in text)


def storable(text: str) -> str:
    """The text with lone surrogates spelled, which UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def bounded(text: str, most: int) -> str:
    """At most so many characters of a text; a longer one ends in how long it was."""
    if len(text) <= most:
        return text
    told = f"... ({len(text)} characters)"
    return text[: most - len(told)] + told


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()
