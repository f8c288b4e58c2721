"""A conversation keeps to its context and survives questions that do not fit it."""

from __future__ import annotations

from contextlib import closing

import pytest

from apr.common.errors import UsageError
from apr.engine.conversation import Conversation
from apr.engine.session import Session, TextRequest

SETTINGS = TextRequest(messages=[], max_tokens=20)


def test_oldest_turns_are_dropped_when_the_context_is_full(session: Session) -> None:
    talk = Conversation(session, SETTINGS, system="sys")
    dropped = 0
    for number in range(8):
        question = f"{number}" * 40
        answer = "".join(talk.ask(question))
        dropped += talk.forgotten
        assert talk.turns[-2:] == [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * (
            len(talk.turns) // 2
        )
    assert dropped == 16 - len(talk.turns) > 0


def test_a_question_that_never_fits_leaves_the_conversation_as_it_was(session: Session) -> None:
    talk = Conversation(session, SETTINGS)
    list(talk.ask("hello"))
    before = list(talk.turns)
    with pytest.raises(UsageError, match="model's context 256"):
        list(talk.ask("x" * 400))
    assert talk.turns == before
    list(talk.ask("again"))
    assert len(talk.turns) == 4


def test_an_answer_left_early_is_kept_as_far_as_it_came(session: Session) -> None:
    talk = Conversation(session, SETTINGS)
    with closing(talk.ask("hello")) as answer:
        said = [next(answer) for _ in range(5)]
    assert talk.turns[-1] == {"role": "assistant", "content": "".join(said)}
    assert not session.engine.scheduler.busy
    talk.reset()
    assert talk.turns == []
