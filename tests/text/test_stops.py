"""Stop strings against `str.find` on the whole text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.common.errors import UsageError
from apr.text import StopMatcher

small = st.text(alphabet="ab\n`", max_size=40)


def cut(text: str, stops: list[str]) -> str:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


def in_pieces(text: str, cuts: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


@settings(max_examples=600, deadline=None)
@given(
    text=small,
    stops=st.lists(st.text(alphabet="ab\n`", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 99), max_size=12),
)
def test_any_pieces_give_what_find_gives(text, stops, cuts):
    matcher = StopMatcher(stops)
    shown = ""
    for piece in in_pieces(text, cuts):
        shown += matcher.push(piece)
        assert cut(text, stops).startswith(shown), "shown text was taken back"
        if matcher.matched is not None:
            break
    shown += matcher.flush()
    assert shown == cut(text, stops)
    assert (matcher.matched is not None) == any(stop in text for stop in stops)
    if matcher.matched is not None:
        assert text.startswith(matcher.matched, len(shown))


def test_holds_back_only_what_may_become_a_stop():
    matcher = StopMatcher(["\ndef ", "\n```"])
    assert matcher.push("x = 1\nd") == "x = 1"
    assert matcher.push("ay = 2") == "\nday = 2"
    assert matcher.push("\n``") == ""
    assert matcher.push("`\nignored") == ""
    assert matcher.matched == "\n```"
    assert matcher.push("more") == "" and matcher.flush() == ""


def test_a_longer_stop_that_began_earlier_wins():
    matcher = StopMatcher(["bc", "abcX"])
    assert matcher.push("abc") == ""
    assert matcher.push("X") == ""
    assert matcher.matched == "abcX"
    matcher = StopMatcher(["bc", "abcX"])
    assert matcher.push("abc") + matcher.push("Y") == "a"
    assert matcher.matched == "bc"


@pytest.mark.parametrize("stops", [[""], ["a", ""], "stop"])
def test_useless_stops_are_refused(stops):
    with pytest.raises(UsageError, match="stop strings"):
        StopMatcher(stops)
