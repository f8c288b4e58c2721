"""Steps with drafts: whatever is guessed, tokens and known prefixes are those of steps without."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apr.engine.engine import Drafter, Engine, draw
from apr.engine.request import Completion, Request, Sampling
from apr.engine.runners.compiled_runner import CompiledRunner, PackedWeights
from apr.engine.runners.torch_runner import TorchRunner
from apr.engine.scheduler import Sample
from apr.model.config import ModelConfig
from apr.model.transformer import Transformer

from .hash_runner import REQUESTS, VOCABULARY, HashRunner, history_logits, plain

MOST = 7  # more than a block of the hash runner's


def drafter(
    kind: str, truth: Callable[[Sample], list[int]], vocabulary: int = VOCABULARY, seed: int = 0
) -> Drafter:
    """Guesses of 0 to MOST tokens: the right ones, wrong ones, any, or right up to some place.

    truth: what the sample goes on with, perhaps beyond its end.
    """
    choose = random.Random(seed)

    def guess(sample: Sample) -> list[int]:
        right = truth(sample)[: choose.randrange(MOST + 1)]
        if kind == "right":
            return right
        wrong = [(token + 1) % vocabulary for token in right]
        if kind == "wrong":
            return wrong
        if kind == "random":
            return [choose.randrange(vocabulary) for _ in right]
        cut = choose.randrange(len(right) + 1)
        return right[:cut] + wrong[cut:]

    return lambda samples: [guess(sample) for sample in samples]


KINDS = ("right", "wrong", "random", "mixed")


def endless(sample: Sample) -> list[int]:
    """What the hash network goes on with, past stop tokens and the sample's limit."""
    whole, _ = _continued(sample.request, sample.index)
    return whole[sample.generated :]


@cache
def _continued(request: Request, index: int) -> tuple[list[int], str]:
    longer = request.max_tokens + MOST
    return plain(replace(request, stop_ids=frozenset(), max_tokens=longer), index)


def check_known_blocks(engine: Engine, runner: HashRunner) -> None:
    """A known block holds the tokens it is known by."""
    for (_, tokens), (block, _) in engine.scheduler.pool._known.items():
        assert tuple(runner.cache[block].tolist()) == tokens


@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=6),
    concurrency=st.integers(1, 6),
    step_tokens=st.integers(1, 60),
    blocks=st.integers(16, 60),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_every_sample_equals_its_own_loop(
    requests: list[Request], concurrency: int, step_tokens: int, blocks: int, kind: str, seed: int
) -> None:
    runner = HashRunner(blocks)
    engine = Engine(runner, None, concurrency, step_tokens, draft=drafter(kind, endless, seed=seed))
    named = [replace(r, request_id=str(i)) for i, r in enumerate(requests)]
    found: dict[tuple[str, int], Completion] = {}
    for done in engine.generate(named):
        check_known_blocks(engine, runner)
        found[done.request_id, done.sample_index] = done
    assert len(found) == sum(request.n for request in named)
    for request in named:
        for index in range(request.first_sample, request.first_sample + request.n):
            done = found[request.request_id, index]
            assert (list(done.token_ids), done.finish_reason) == plain(request, index)
    assert runner.largest_step <= max(step_tokens, concurrency)
    assert engine.scheduler.pool.available == blocks
    # What is known by now leads to the same tokens again.
    again = {(c.request_id, c.sample_index): c.token_ids for c in engine.generate(named)}
    assert again == {key: c.token_ids for key, c in found.items()}


def steps_of(engine: Engine, *requests: Request) -> int:
    for request in requests:
        engine.add(request)
    count = 0
    while engine.scheduler.busy:
        engine.step()
        count += 1
    return count


def test_right_drafts_take_fewer_steps() -> None:
    request = Request((1, 2), n=3, max_tokens=41, sampling=Sampling(temperature=1.0))

    def all_right(samples: Sequence[Sample]) -> list[list[int]]:
        return [endless(sample)[:4] for sample in samples]

    runner = HashRunner(100)
    # One step for the prompt and the first token, then five tokens a step.
    assert steps_of(Engine(runner, draft=all_right), request) == 1 + 40 // 5
    assert runner.tokens_read == 2 + 3 * 40
    assert steps_of(Engine(HashRunner(100)), request) == 41


@pytest.mark.parametrize("place", range(5))
def test_a_sample_ends_inside_its_drafts(place: int) -> None:
    """By a stop token, a stop string and its limit: what was guessed beyond is not there."""
    asked = Request((3, 1), max_tokens=12, logprobs=True)
    whole, _ = plain(asked, 0)
    at = 2 + place  # a place inside the five drafts of the second step
    assert whole[at] not in whole[:at]
    seen: list[int] = []

    def on_token(index: int, token: int) -> bool:
        seen.append(token)
        return token == whole[at]

    for request, length, reason in (
        (replace(asked, stop_ids=frozenset({whole[at]})), at, "stop"),
        (replace(asked, on_token=on_token), at + 1, "stop_string"),
        (replace(asked, max_tokens=at + 1), at + 1, "length"),
    ):
        engine = Engine(HashRunner(30), draft=lambda samples: [endless(s)[:5] for s in samples])
        (done,) = engine.generate([request])
        assert (list(done.token_ids), done.finish_reason) == (whole[:length], reason)
        (alone,) = Engine(HashRunner(30)).generate([replace(request, on_token=None)])
        assert done.logprobs == alone.logprobs[:length]
        # Blocks of accepted tokens alone are known: a prompt that goes on from them finds them.
        prompt = (*request.prompt_ids, *whole)
        (after,) = engine.generate([Request(prompt, max_tokens=1)])
        most = length if reason == "stop" else length - (reason == "length")
        assert after.cached_tokens == (2 + most) // 4 * 4
    assert seen == whole[: at + 1]


def test_a_rolled_back_position_is_no_known_prefix() -> None:
    """Wrong drafts fill whole blocks in each step; a prompt of those very tokens finds none."""
    runner = HashRunner(60)
    request = Request((5, 6, 7), max_tokens=20)
    truth, _ = plain(request, 0)
    guesses = [next(t for t in range(VOCABULARY) if t not in truth)] * 7
    engine = Engine(runner, draft=lambda samples: [list(guesses) for _ in samples])
    ticket = engine.add(request)
    for _ in range(4):
        engine.step()
    engine.cancel(ticket)  # with guesses of the last step in its blocks
    assert engine.scheduler.pool.available == 60
    for generated in range(1, 5):
        prompt = (*request.prompt_ids, *truth[:generated], *guesses, 1, 2)
        follower = Request(prompt, max_tokens=6)
        (done,) = engine.generate([follower])
        assert list(done.token_ids) == plain(follower, 0)[0]
    found = engine.scheduler.pool.find(0, (*request.prompt_ids, truth[0]))
    assert found is not None
    assert engine.scheduler.pool.find(found[1], truth[1:5]) is None  # three of them were read


def test_a_verifier_decides_what_stands() -> None:
    """It gets a row of logits for each draft and one more; drafts it accepts become tokens."""
    rows: list[tuple[list[int], torch.Tensor]] = []

    def first_three(samples: Sequence[Sample], logits: torch.Tensor) -> list[tuple[int, int]]:
        found, row = [], 0
        for sample in samples:
            for ahead in range(1 + len(sample.drafts)):
                rows.append((sample.tokens + sample.drafts[:ahead], logits[row + ahead].clone()))
            accepted = min(3, len(sample.drafts))
            found.append((accepted, 9))
            row += 1 + len(sample.drafts)
        return found

    engine = Engine(
        HashRunner(30), draft=lambda samples: [[20, 21, 22, 23]] * len(samples), verify=first_three
    )
    done = list(engine.generate([Request((1, 2), n=2, max_tokens=7, logprobs=True)]))
    for completion in done:
        # The last step has room for one guess.
        assert completion.token_ids == (9, 20, 21, 22, 9, 20, 9)
        history = [1, 2]
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            want = torch.from_numpy(history_logits(history)).double().log_softmax(-1)[token]
            assert logprob == pytest.approx(float(want), abs=1e-5)
            history.append(token)
    assert all(torch.equal(row, torch.from_numpy(history_logits(h))) for h, row in rows)


def test_a_row_draws_what_it_draws_alone() -> None:
    request = Request((1, 2, 3), sampling=Sampling(1.2, top_k=9, repetition_penalty=1.4), seed=5)
    drafted = Sample(0, request, 2, [1, 2, 3, 4], 0, 9)
    drafted.drafts = [4, 6, 7]
    histories = [drafted.tokens + drafted.drafts[:n] for n in range(4)]
    logits = torch.stack([torch.from_numpy(history_logits(h)) for h in histories])
    alone = [draw([Sample(0, request, 2, h, 0, 9)], row[None])[0] for h, row in
             zip(histories, logits, strict=True)]  # fmt: skip
    assert draw([drafted], logits) == alone


SMALL = ModelConfig(
    family="llama", vocab_size=200, hidden_size=64, intermediate_size=96, num_layers=2,
    num_heads=4, num_kv_heads=2, head_dim=16, max_position=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Transformer:
    torch.manual_seed(0)
    network = Transformer(SMALL).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return network


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1.0, top_p=0.9)])
@pytest.mark.parametrize("runner", ["compiled bf16", "torch fp32"])
def test_real_networks(network: Transformer, runner: str, how: Sampling) -> None:
    """The compiled kernels give the same bits. Torch's products may sum in another order for
    another number of rows (about 1e-6 in fp32): tokens of this fixed network must not change.
    """
    if runner == "compiled bf16":
        runs = CompiledRunner(PackedWeights(SMALL, network.state_dict().__getitem__), 40, threads=1)
    else:
        runs = TorchRunner(network, 40)
    requests = [
        # Prompts that end before, on and after the end of a block of 64 positions.
        Request(tuple((7 * i + length) % 200 for i in range(length)), n=n, max_tokens=24,
                sampling=how, seed=length, logprobs=True, request_id=str(length))
        for length, n in ((3, 1), (55, 3), (64, 1), (119, 2))
    ]  # fmt: skip

    def answers(draft: Drafter | None) -> dict[tuple[str, int], Completion]:
        engine = Engine(runs, max_concurrency=8, draft=draft)
        found = {(c.request_id, c.sample_index): c for c in engine.generate(requests)}
        assert engine.scheduler.pool.available == 40
        return found

    without = answers(None)
    assert len({c.token_ids for c in without.values()}) >= len(requests)

    def truth(sample: Sample) -> list[int]:
        known = without[sample.request.request_id, sample.index].token_ids
        return list(known[sample.generated :])

    for kind in KINDS:
        drafted = answers(drafter(kind, truth, SMALL.vocab_size))
        for key, want in without.items():
            assert drafted[key].token_ids == want.token_ids, (kind, key)
            if runner == "compiled bf16":
                assert drafted[key].logprobs == want.logprobs
            else:
                assert drafted[key].logprobs == pytest.approx(want.logprobs, abs=1e-4)
    if isinstance(runs, CompiledRunner):
        runs.close()
