"""Several callers on one engine: each gets its own events and can cancel its own requests alone."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.engine.engine import Engine
from apr.engine.request import Completion, Event, FinishedEvent, Request, Sampling, TokenEvent
from apr.engine.session import Session, TextCompletion, TextRequest

from .hash_runner import REQUESTS, HashRunner, plain

WARM = Sampling(temperature=1.0)


def assert_nothing_is_held(engine: Engine) -> None:
    scheduler = engine.scheduler
    assert not scheduler.busy
    assert scheduler.pool.available == scheduler.pool.num_blocks, "blocks are still held"
    # All of the room can be promised again.
    size = scheduler.pool.num_blocks * scheduler.pool.block_size
    whole = min(size, engine.context) - 1
    assert len(list(engine.generate([Request((1,) * whole, max_tokens=1)] * 2))) == 2
    assert not engine._inboxes


def run(engine: Engine) -> dict[int, list[Event]]:
    """Events by ticket, until nothing is under way."""
    found: dict[int, list[Event]] = defaultdict(list)
    while engine.scheduler.busy:
        for event in engine.step():
            found[event.ticket].append(event)
    return found


def completions(events: list[Event]) -> dict[int, Completion]:
    found = [e.completion for e in events if isinstance(e, FinishedEvent)]
    assert len({c.sample_index for c in found}) == len(found)
    return {c.sample_index: c for c in found}


def assert_all_there(request: Request, events: list[Event]) -> None:
    """Each sample is what its own loop gives, and its events are its tokens and then its end."""
    done = completions(events)
    assert sorted(done) == list(range(request.first_sample, request.first_sample + request.n))
    for index, completion in done.items():
        want, reason = plain(request, index)
        assert (list(completion.token_ids), completion.finish_reason) == (want, reason)
        mine = [e for e in events if isinstance(e, TokenEvent) and e.sample_index == index]
        assert [e.token for e in mine] == want
        if mine:
            assert events.index(mine[-1]) < events.index(FinishedEvent(mine[0].ticket, completion))


def test_tokens_come_as_they_are_drawn() -> None:
    engine = Engine(HashRunner(60), max_concurrency=4)
    assert engine.step() == []
    first = Request((1, 2, 3), n=2, max_tokens=5, sampling=WARM, logprobs=True)
    second = Request((4,), max_tokens=3)
    tickets = engine.add(first), engine.add(second)
    events = engine.step()
    assert sorted(e.ticket for e in events) == [tickets[0], tickets[0], tickets[1]]
    assert {type(e) for e in events} == {TokenEvent}
    again = Engine(HashRunner(60), max_concurrency=4)
    assert (again.add(first), again.add(second)) == tickets
    found = run(again)
    assert_all_there(first, found[tickets[0]])
    assert_all_there(second, found[tickets[1]])
    for index, completion in completions(found[tickets[0]]).items():
        told = [e for e in found[tickets[0]] if isinstance(e, TokenEvent)]
        assert [e.logprob for e in told if e.sample_index == index] == list(completion.logprobs)
    assert all(e.logprob is None for e in found[tickets[1]] if isinstance(e, TokenEvent))


@pytest.mark.parametrize(
    ("n", "steps", "phase"),
    [(1, 0, "waiting"), (5, 0, "waiting"), (1, 1, "in prefill"), (5, 1, "in prefill"),
     (1, 6, "decoding"), (2, 6, "decoding"), (5, 6, "decoding, others wait for a place")],
)  # fmt: skip
def test_cancelled_in_each_phase(n: int, steps: int, phase: str) -> None:
    """The prompt of 17 tokens takes five steps of 4, one less for each sample that decodes."""
    engine = Engine(HashRunner(100), max_concurrency=3, max_step_tokens=4)
    prompt = tuple(range(17))
    other = Request((*prompt[:9], 30), n=2, max_tokens=30, sampling=WARM)
    doomed = Request(prompt, n=n, max_tokens=30, sampling=WARM)
    ticket = engine.add(doomed)
    kept = engine.add(other)
    seen: list[Event] = []
    for _ in range(steps):
        seen += engine.step()
    running = [s for s in engine.scheduler.running if s.ticket == ticket]
    waiting = [s for s in engine.scheduler.waiting if s.ticket == ticket]
    assert (len(waiting) == n) == (phase == "waiting")
    assert any(s.decoding for s in running) == phase.startswith("decoding")
    assert bool(waiting and running) == (n == 5 and steps > 0)
    engine.cancel(ticket)
    engine.cancel(ticket)  # again, or when it is over: nothing
    events = run(engine)
    assert set(events) == {kept}
    assert_all_there(other, [e for e in seen if e.ticket == kept] + events[kept])
    assert_nothing_is_held(engine)


@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=6),
    concurrency=st.integers(1, 6),
    step_tokens=st.integers(1, 40),
    blocks=st.integers(16, 60),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_a_cancelled_request_touches_no_other(
    requests: list[Request], concurrency: int, step_tokens: int, blocks: int, data: st.DataObject
) -> None:
    engine = Engine(HashRunner(blocks), max_concurrency=concurrency, max_step_tokens=step_tokens)
    asked = {engine.add(request): request for request in requests}
    cancelled: set[int] = set()
    events: list[Event] = []
    while engine.scheduler.busy:
        for event in engine.step():
            assert event.ticket not in cancelled
            events.append(event)
        if data.draw(st.integers(0, 5)) == 0:
            ticket = data.draw(st.sampled_from(sorted(asked)))
            engine.cancel(ticket)
            cancelled.add(ticket)
    for ticket, request in asked.items():
        if ticket not in cancelled:
            assert_all_there(request, [e for e in events if e.ticket == ticket])
    assert_nothing_is_held(engine)


@pytest.mark.parametrize("whose", ["own", "other"])
def test_a_callback_may_cancel(whose: str) -> None:
    engine = Engine(HashRunner(60), max_concurrency=4)
    tickets: list[int] = []

    def on_token(index: int, token: int) -> bool:
        if engine.scheduler.running[0].generated == 4:
            engine.cancel(tickets[whose == "other"])
        return False

    requests = Request((1,), n=2, max_tokens=9, on_token=on_token), Request((2,), max_tokens=20)
    tickets += map(engine.add, requests)
    found = run(engine)
    cancelled = tickets[whose == "other"]
    assert not completions(found[cancelled])
    # Nothing of the step in which it was asked for.
    assert max(len(events) for events in [found[cancelled]]) == (3 if whose == "other" else 6)
    for ticket, request in zip(tickets, requests, strict=True):
        if ticket != cancelled:
            assert_all_there(request, found[ticket])
    assert_nothing_is_held(engine)


def test_callers_take_turns() -> None:
    """Three loops over one engine, started one inside the other; one is left early."""
    engine = Engine(HashRunner(100), max_concurrency=3, max_step_tokens=8)
    many = [
        Request((i, 1, 2), n=2, max_tokens=6, sampling=WARM, seed=i, request_id=str(i))
        for i in range(6)
    ]
    with closing(engine.inbox()) as left, closing(engine.inbox()) as whole:
        left.add(Request((9,) * 5, n=2, max_tokens=50))
        ticket = whole.add(Request((8,) * 20, max_tokens=12))
        events: list[Event] = []
        done: list[Completion] = []
        for number, completion in enumerate(engine.generate(iter(many))):
            done.append(completion)
            events += whole.take() if number % 2 else []
            left.take() if number < 3 else left.close()
        assert not left.awaits
        while whole.awaits:
            events += whole.take()
    assert {e.ticket for e in events} == {ticket}
    assert_all_there(Request((8,) * 20, max_tokens=12), events)
    for request in many:
        mine = {
            c.sample_index: list(c.token_ids) for c in done if c.request_id == request.request_id
        }
        assert mine == {index: plain(request, index)[0] for index in range(2)}
    assert_nothing_is_held(engine)


def test_streams_and_batches_of_one_session(session: Session) -> None:
    """Two streams and a batch advance in turn, one stream is left; the others go on."""
    requests = [
        TextRequest(prompt=prompt, max_tokens=30, sampling=WARM, seed=seed)
        for seed, prompt in enumerate("abcde")
    ]
    alone = [next(iter(session.generate([r]))) for r in requests]
    first, second = session.stream(requests[0]), session.stream(requests[1])
    batch = session.generate(iter(requests[2:]))
    pieces = ["", ""]
    ended: list[TextCompletion] = []
    answers: list[TextCompletion] = []
    left = session.stream(requests[1])
    next(left)
    while len(ended) < 2:
        for number, stream in enumerate((first, second)):
            for piece in (next(stream, None),):
                if isinstance(piece, TextCompletion):
                    ended.append(piece)
                elif piece is not None:
                    pieces[number] += piece
        if (answer := next(batch, None)) is not None:
            answers.append(answer)
        left.close()
    answers += batch
    assert pieces == [a.text for a in alone[:2]]
    assert {a.token_ids for a in ended} == {a.token_ids for a in alone[:2]}
    assert sorted(a.text for a in answers) == sorted(a.text for a in alone[2:])
    assert not session.engine.scheduler.busy
    pool = session.engine.scheduler.pool
    assert pool.available == pool.num_blocks
