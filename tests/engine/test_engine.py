"""The engine against a plain loop per sample, over a runner that notices every cache mistake."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.common.errors import AprError, UsageError
from apr.engine.engine import Engine
from apr.engine.request import Completion, Request, Sampling
from apr.engine.runners.runner import StepBatch
from apr.engine.scheduler import Sample

from .hash_runner import REQUESTS, VOCABULARY, HashRunner, history_logits, plain


@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
    concurrency=st.integers(1, 6),
    step_tokens=st.integers(1, 40),
    blocks=st.integers(16, 60),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_equals_its_own_loop(
    requests: list[Request], concurrency: int, step_tokens: int, blocks: int
) -> None:
    runner = HashRunner(blocks)
    engine = Engine(runner, max_concurrency=concurrency, max_step_tokens=step_tokens)
    named = [Request(**{**vars(r), "request_id": str(i)}) for i, r in enumerate(requests)]
    found = {(c.request_id, c.sample_index): c for c in engine.generate(named)}
    assert len(found) == sum(r.n for r in named)
    for request in named:
        for index in range(request.first_sample, request.first_sample + request.n):
            completion = found[request.request_id, index]
            want, reason = plain(request, index)
            assert list(completion.token_ids) == want
            assert completion.finish_reason == reason
            assert completion.prompt_tokens == len(request.prompt_ids)
    assert runner.largest_step <= max(step_tokens, concurrency)
    pool = engine.scheduler.pool
    assert pool.available == blocks, "blocks are still held after the last sample"
    assert not engine.scheduler.busy


def test_samples_of_a_request_share_one_prefill() -> None:
    runner = HashRunner(100)
    engine = Engine(runner, max_concurrency=8)
    request = Request(tuple(range(10)), n=8, max_tokens=3, sampling=Sampling(temperature=1.0))
    done = list(engine.generate([request]))
    # The prompt once, and two decoding steps for each of the eight samples.
    assert runner.tokens_read == 10 + 8 * 2
    assert runner.copies == 7  # the last, partial block
    assert len({c.token_ids for c in done}) > 1


def test_prompts_that_arrive_together_share_their_beginning() -> None:
    runner = HashRunner(100)
    engine = Engine(runner, max_concurrency=8)
    beginning = tuple(range(20))
    requests = [Request((*beginning, 30 + i), max_tokens=1) for i in range(6)]
    done = list(engine.generate(requests))
    assert runner.tokens_read == 21 + 5
    assert sorted(c.cached_tokens for c in done) == [0] + [20] * 5


def test_a_finished_prefix_is_found_again_until_its_room_is_needed() -> None:
    runner = HashRunner(8)
    engine = Engine(runner, max_concurrency=1)
    first = Request(tuple(range(12)), max_tokens=1)
    list(engine.generate([first]))
    (again,) = engine.generate([first])
    assert again.cached_tokens == 8
    list(engine.generate([Request(tuple(range(20, 48)), max_tokens=1)]))  # needs all blocks
    (after,) = engine.generate([first])
    assert after.cached_tokens == 0


def test_requests_are_taken_as_room_appears() -> None:
    taken = []

    def source() -> Iterator[Request]:
        for i in range(50):
            taken.append(i)
            yield Request((i % 40,), max_tokens=3, request_id=str(i))

    engine = Engine(HashRunner(30), max_concurrency=4)
    stream = engine.generate(source())
    next(stream)
    assert len(taken) < 12
    stream.close()
    assert engine.scheduler.pool.available == 30
    assert not engine.scheduler.busy


def test_callback_ends_a_sample() -> None:
    seen: list[int] = []

    def on_token(index: int, token: int) -> bool:
        seen.append(token)
        return len(seen) == 4

    (done,) = Engine(HashRunner(30)).generate([Request((1,), max_tokens=10, on_token=on_token)])
    assert done.finish_reason == "stop_string"
    assert list(done.token_ids) == seen


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    request = Request((1, 2), max_tokens=6, logprobs=True, sampling=Sampling(0.5, top_k=3))
    (done,) = Engine(HashRunner(30)).generate([request])
    history = [1, 2]
    assert done.logprobs is not None
    for token, logprob in zip(done.token_ids, done.logprobs, strict=True):
        want = torch.from_numpy(history_logits(history)).double().log_softmax(-1)[token]
        assert logprob == pytest.approx(float(want), abs=1e-5)
        history.append(token)


def test_what_cannot_run_is_refused_with_the_numbers() -> None:
    engine = Engine(HashRunner(5))
    with pytest.raises(UsageError, match=r"prompt has 200 tokens and the model's context 200"):
        list(engine.generate([Request((1,) * 200)]))
    with pytest.raises(UsageError, match=r"need 6 cache blocks of 4 positions.* has 5"):
        list(engine.generate([Request((1,) * 14, max_tokens=10)]))
    with pytest.raises(UsageError, match="token 50 is none of the model's 50"):
        engine.add(Request((1, 50, 2)))
    with pytest.raises(UsageError, match="`temperature` is -1"):
        Sampling(temperature=-1)
    with pytest.raises(UsageError, match="`top_p` is 0"):
        Sampling(top_p=0)
    with pytest.raises(UsageError, match="empty prompt"):
        Request(())
    with pytest.raises(UsageError, match="n is 0"):
        Request((1,), n=0)


class Failing(HashRunner):
    """Its logits are not finite behind the token 9."""

    def forward(self, batch: StepBatch) -> torch.Tensor:
        logits = super().forward(batch)
        for row, index in enumerate(batch.logit_rows):
            if batch.token_ids[index] == 9:
                logits[row, 3] = torch.nan
        return logits


@pytest.mark.parametrize("how", [Sampling(), Sampling(1.0, top_k=4), Sampling(1.0)])
@pytest.mark.parametrize("guesses", [[], [4, 9, 5]])
def test_logits_that_are_not_finite_end_the_run_and_say_where(
    how: Sampling, guesses: list[int]
) -> None:
    def draft(samples: Sequence[Sample]) -> list[list[int]]:
        return [guesses for _ in samples]

    engine = Engine(Failing(30), draft=draft, failure_hint="buy another")
    engine.add(Request((1, 1), max_tokens=1, sampling=how))
    prompt = (1, 5, 2) if guesses else (1, 5, 9)
    engine.add(Request(prompt, max_tokens=9, sampling=how, logprobs=True))
    after = len(prompt) + (3 if guesses else 0)  # a token of its own, and two guesses
    with pytest.raises(AprError, match=rf"logits after {after} tokens are not .*\(buy another\)"):
        while engine.step():
            pass


def test_drafts_beyond_the_vocabulary_never_reach_the_runner() -> None:
    engine = Engine(HashRunner(30), draft=lambda samples: [[3, 50] for _ in samples])
    with pytest.raises(UsageError, match="token 50 is none of the model's 50"):
        list(engine.generate([Request((1, 2), max_tokens=9)]))


def test_max_tokens_ends_at_the_context() -> None:
    engine = Engine(HashRunner(60))
    (done,) = engine.generate([Request((1,) * 195, max_tokens=50)])
    assert len(done.token_ids) == 5
    assert done.finish_reason == "length"


def test_order_of_requests_does_not_matter() -> None:
    requests = [
        Request((i, i + 1), n=2, max_tokens=12, seed=i, request_id=str(i),
                sampling=Sampling(temperature=1.0))
        for i in range(10)
    ]  # fmt: skip

    def result(order: list[Request], concurrency: int) -> dict[tuple[str, int], Completion]:
        engine = Engine(HashRunner(80), max_concurrency=concurrency)
        return {(c.request_id, c.sample_index): c.token_ids for c in engine.generate(order)}

    want = result(requests, 1)
    shuffled = random.Random(0).sample(requests, len(requests))
    assert result(shuffled, 7) == want
    assert max(t for tokens in want.values() for t in tokens) < VOCABULARY
