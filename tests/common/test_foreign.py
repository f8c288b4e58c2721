"""Text of others on its way to a terminal, a table, a database."""

import pytest

from apr.common.foreign import bounded, printable, storable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é 😀", "a\tb\nc é 😀"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("over\rwritten\b\x00\x7f\x9b", "over\\rwritten\\x08\\x00\\x7f\\x9b"),
        ("half \ud800", "half \\ud800"),
        ("right\u202eto left\u2066", "right\\u202eto left\\u2066"),
        ("line\u2028end", "line\\u2028end"),
    ],
)
def test_what_does_not_print_is_spelled(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_half_a_pair_can_be_stored() -> None:
    assert storable("é\udcff\x1b") == "é\\udcff\x1b"


def test_bounded() -> None:
    assert bounded("x" * 80, 80) == "x" * 80
    long = bounded("x" * 60_000_000, 80)
    assert len(long) == 80
    assert long.endswith("x... (60000000 characters)")
