"""Filters against transformers' logits processors, draws against their distribution."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from apr.engine import sampling
from apr.engine.request import LEAST_TEMPERATURE, Sampling

SETTINGS = [
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=2.0, top_p=0.999),
    Sampling(temperature=1.5, min_p=0.05),
    Sampling(temperature=0.9, top_k=50, top_p=0.8, min_p=0.02),
    Sampling(temperature=1.0, top_k=5000),
]


def reference(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    """Probabilities (R, V) after transformers' processors in its order."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(how.temperature)])
    if how.top_k:
        steps.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        steps.append(TopPLogitsWarper(how.top_p))
    if how.min_p:
        steps.append(MinPLogitsWarper(how.min_p))
    return steps(torch.zeros(len(logits), 1, dtype=torch.long), logits.clone()).softmax(-1)


def sorted_weights(scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, V) weights as `sampling` has them, likeliest first and equals by id; and their ids."""
    highest = scaled.amax(-1, keepdim=True)
    weights = (
        (scaled - highest).exp().double() * 2.0 ** (53 - scaled.shape[1].bit_length())
    ).round()
    ids = torch.sort(weights, dim=-1, descending=True, stable=True).indices
    return weights.gather(1, ids), ids


def kept(scaled: torch.Tensor, how: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The filters by their definition, over everything sorted: weights (0 where cut) and ids."""
    weights, ids = sorted_weights(scaled)
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[:, how.top_k or weights.shape[1] :] = False
    if how.top_p < 1:
        mass = (weights * keep).sum(-1, keepdim=True)
        keep &= weights.cumsum(-1) - weights < how.top_p * mass
    keep &= weights >= how.min_p * weights[:, :1]
    return weights * keep, ids


def drawn_by_sorting(logits: torch.Tensor, how: Sampling, number: float) -> list[int]:
    """Of each row the first token whose running sum passes the number's part of the whole."""
    weights, ids = kept(logits / how.temperature, how)
    ends = weights.cumsum(-1)
    places = (ends > number * ends[:, -1:]).int().argmax(-1)
    last = (weights > 0).sum(-1) - 1
    places = torch.where(number * ends[:, -1] < ends[:, -1], places, last)
    return ids.gather(1, places[:, None])[:, 0].tolist()


def ours(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    weights, ids = kept(logits / how.temperature, how)
    result = torch.zeros(logits.shape, dtype=torch.float64).scatter_add(1, ids, weights)
    return result / result.sum(-1, keepdim=True)


NUMBERS = (0.0, 0.05, 0.3, 0.5, 0.75, 0.9, 0.999, 1 - 2**-53)


@st.composite
def rows_of_logits(draw: st.DrawFn) -> torch.Tensor:
    """Rows narrow and wide, with and without equals, in vocabularies of many sizes."""
    size = draw(st.sampled_from([1, 2, 7, 255, 256, 257, 300, 2000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = torch.randn(4, size, generator=generator)
    rows *= torch.tensor(draw(st.lists(st.sampled_from([0, 1e-4, 0.3, 3, 40]), min_size=4,
                                       max_size=4)))[:, None]  # fmt: skip
    steps = draw(st.sampled_from([None, 1, 4, 64]))  # equals: only so many values a unit
    rows = rows if steps is None else (rows * steps).round() / steps
    if draw(st.booleans()) and size > 1:
        rows[:, torch.randint(size - 1, (size // 2,), generator=generator)] = -torch.inf
    return rows


@settings(max_examples=400, deadline=None)
@given(
    rows_of_logits(),
    st.sampled_from([0.01, 0.8, 1.0, 2.0]),
    st.sampled_from([0, 1, 5, 255, 256, 280, 10_000]),
    st.sampled_from([1e-9, 0.1, 0.5, 0.75, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_tokens_are_those_of_sorting_everything(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    how = Sampling(temperature, top_k, top_p, min_p)
    assume(top_k or top_p < 1 or min_p)
    for number in NUMBERS:
        assert sampling.draw(logits, how, [number] * 4) == drawn_by_sorting(logits, how, number)


def test_a_wide_nucleus_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a vocabulary in the nucleus: only what lies around a boundary is put in order."""
    sizes = []
    argsort, topk = np.argsort, torch.topk
    monkeypatch.setattr(np, "argsort", lambda a, **kw: (sizes.append(len(a)), argsort(a, **kw))[1])
    monkeypatch.setattr(torch, "topk", lambda x, k, **kw: (sizes.append(k), topk(x, k, **kw))[1])
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(8)) * 2
    for how in (Sampling(2.0, top_p=0.99), Sampling(1.0, min_p=1e-4), Sampling(1.0, top_k=20_000)):
        sizes.clear()
        tokens = sampling.draw(logits, how, [0.6] * 3)
        assert tokens == drawn_by_sorting(logits, how, 0.6)
        assert sizes and max(sizes) <= sampling.FIRST_LOOK


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_filtered_distribution_equals_transformers(how: Sampling, spread: float) -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(1)) * spread
    # fp32 softmax and running sums there, fp64 here: a token at the very edge of top-p may differ,
    # which shows as its own (tiny) probability.
    assert torch.allclose(ours(logits, how), reference(logits, how).double(), atol=2e-5)


def test_a_flat_row_does_not_change_the_others() -> None:
    """One row needs a wide look, the rest a narrow one: each gets what it gets alone."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(5, 3000, generator=generator) * torch.tensor([[9.0], [0.1], [6], [3], [9]])
    numbers = [0.1, 0.999, 0.6, 0.97, 0.3]
    for how in (Sampling(1.0, top_p=0.95), Sampling(1.0, min_p=0.01), Sampling(1.0, top_k=40)):
        alone = [sampling.draw(logits[i : i + 1], how, [numbers[i]])[0] for i in range(5)]
        assert sampling.draw(logits, how, numbers) == alone
        assert torch.allclose(ours(logits, how), reference(logits, how).double(), atol=2e-5)


def test_repetition_penalty_equals_transformers() -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(2)) * 4
    seen = [3, 99, 3, 50]
    want = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([seen]), logits.clone())[0]
    assert torch.equal(sampling.penalize(logits[0], seen, 1.4), want)


@pytest.mark.parametrize(
    "how",
    [
        Sampling(1.0),
        Sampling(0.8, top_k=7),
        Sampling(1.2, top_p=0.7),
        Sampling(1.0, min_p=0.05),
    ],
)
def test_draw_frequencies_fit_the_distribution(how: Sampling) -> None:
    """Chi-square over 20 000 draws; seeds are fixed, so this either holds or does not."""
    size, draws = 700, 20_000
    row = torch.randn(1, size, generator=torch.Generator().manual_seed(3)) * 2
    numbers = [sampling.uniform(11, 0, step) for step in range(draws)]
    counts = np.zeros(size)
    for start in range(0, draws, 1000):
        part = numbers[start : start + 1000]
        np.add.at(counts, sampling.draw(row.expand(len(part), -1), how, part), 1)
    unfiltered = how == Sampling(1.0)
    probabilities = (row / how.temperature).softmax(-1)[0] if unfiltered else ours(row, how)[0]
    expected = probabilities.double().numpy() * draws
    assert counts[expected == 0].sum() == 0
    big = expected >= 5
    rest = expected[~big].sum()
    statistic = ((counts[big] - expected[big]) ** 2 / expected[big]).sum()
    if rest > 0:
        statistic += (counts[~big].sum() - rest) ** 2 / rest
    freedom = big.sum() - (0 if rest > 0 else 1)
    # Mean f and variance 2f; five deviations is a chance of about one in a million.
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_random_numbers_are_keyed_and_uniform() -> None:
    assert sampling.uniform(1, 2, 3) == sampling.uniform(1, 2, 3)
    keys = [(s, i, t) for s in range(10) for i in range(10) for t in range(50)]
    numbers = np.array([sampling.uniform(*key) for key in keys])
    assert len(set(numbers.tolist())) == len(keys)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert np.all(np.abs(counts - 250) < 5 * math.sqrt(250))


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(2, 1000)
    logits[0, [40, 900]] = 3.0
    assert sampling.greedy(logits) == [40, 0]


def test_extreme_logits_are_drawn_from_without_error() -> None:
    row = torch.full((1, 600), -torch.inf)
    row[0, 599] = 5.0
    for how in (Sampling(1.0), Sampling(1.0, top_p=0.5), Sampling(0.01, min_p=0.1)):
        for number in (0.0, 0.5, 1 - 2**-53):
            assert sampling.draw(row, how, [number]) == [599]
    huge = torch.zeros(1, 600)
    huge[0, 17] = 1e4
    assert sampling.draw(huge, Sampling(0.1), [0.999]) == [17]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-31])
def test_a_temperature_below_fp32_is_greedy(temperature: float) -> None:
    how = Sampling(temperature)
    assert how.greedy
    assert not Sampling(LEAST_TEMPERATURE).greedy


def test_the_lowest_temperature_that_is_drawn_at_gives_the_highest_logit() -> None:
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(9)) * 1e4
    for how in (Sampling(LEAST_TEMPERATURE), Sampling(LEAST_TEMPERATURE, top_p=0.9)):
        for number in NUMBERS:
            assert sampling.draw(logits, how, [number] * 4) == sampling.greedy(logits)


@pytest.mark.parametrize(
    "row", [{7: torch.nan}, {599: torch.inf}, dict.fromkeys(range(600), -torch.inf)]
)
def test_a_row_without_a_finite_maximum_is_named(row: dict[int, float]) -> None:
    logits = torch.randn(3, 600, generator=torch.Generator().manual_seed(1))
    for token, value in row.items():
        logits[1, token] = value
    ways = [lambda: sampling.greedy(logits)]
    for how in (Sampling(1.0), Sampling(1.0, top_p=0.9), Sampling(1.0, top_k=5)):
        ways.append(partial(sampling.draw, logits, how, [0.5] * 3))
    for draw in ways:
        with pytest.raises(sampling.NotFinite) as caught:
            draw()
        assert caught.value.row == 1


def test_a_token_may_be_impossible() -> None:
    logits = torch.full((1, 600), -torch.inf)
    logits[0, 44] = -3.0
    for how in (Sampling(1.0), Sampling(1.0, top_p=0.9), Sampling(1.0, min_p=0.5)):
        assert sampling.draw(logits, how, [0.99]) == sampling.greedy(logits) == [44]


def test_logprobs_equal_log_softmax() -> None:
    logits = torch.randn(5, 400, generator=torch.Generator().manual_seed(5)) * 10
    tokens = [0, 399, 7, 7, 200]
    want = logits.double().log_softmax(-1)[range(5), tokens]
    assert sampling.chosen_logprobs(logits, tokens) == pytest.approx(want.tolist(), abs=1e-4)


def test_logprobs_are_the_same_bits_alone_and_among_others() -> None:
    """In a vocabulary so large that a sum over it may be split among threads."""
    logits = torch.randn(8, 262_144, generator=torch.Generator().manual_seed(6)) * 3
    tokens = list(range(8))
    together = sampling.chosen_logprobs(logits, tokens)
    alone = [sampling.chosen_logprobs(logits[i : i + 1], [i])[0] for i in range(8)]
    assert together == alone
    want = logits.double().log_softmax(-1)[range(8), tokens]
    assert together == pytest.approx(want.tolist(), abs=1e-4)
