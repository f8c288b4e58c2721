"""From logits to tokens. Each row's token depends on its logits, its settings and its key alone.

Random numbers are counter-based (Salmon et al. 2011, Philox): the number for (seed, sample, step)
is computed from these three, so it does not matter what else is in the batch or in which order
samples run. Filters follow Hugging Face's order: repetition penalty, temperature, top-k, top-p,
min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from apr.engine.request import Sampling

# Candidates looked at first when filters cut the tail; the whole row only if they do not suffice.
FIRST_LOOK = 256
# Weights from 1 to 2**52 in steps of their leading 7 bits are fewer.
COARSE = 52 << 7
CHUNK = 256


def uniform(seed: int, sample: int, step: int) -> float:
    """The random number in [0, 1) of one draw, 53 bits."""
    key = np.array([seed & (2**64 - 1), sample], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=step).random_raw()
    return (int(bits) >> 11) * 2.0**-53


class NotFinite(ArithmeticError):
    """The logits of a row have no finite maximum: from them no token can be drawn."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} of the logits is not finite")
        self.row = row


def _require_finite(highest: torch.Tensor) -> None:
    """highest: (R,) or (R, 1), each row's maximum: NaN or infinite where something in it is (but
    for -inf, a token that cannot be). Looking at it alone costs nothing beside finding it.
    """
    bad = torch.isfinite(highest).logical_not_().flatten().nonzero()
    if len(bad):
        raise NotFinite(int(bad[0]))


def greedy(logits: torch.Tensor) -> list[int]:
    """The highest logit of each row of (R, V), the lowest id among equals. Raises NotFinite."""
    if logits.device.type == "cpu":
        chosen = torch.from_numpy(logits.numpy().argmax(axis=-1))  # faster than torch's
    else:
        chosen = logits.argmax(dim=-1)
    _require_finite(logits.gather(1, chosen[:, None]))
    return chosen.tolist()


def chosen_logprobs(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """log softmax(logits)[token] of each row, fp32, of the unmodified distribution.

    A row's bits are the same alone and among others, which logsumexp's are not in large
    vocabularies; and one fused pass takes a fraction of its time.
    """
    chosen = torch.tensor(tokens, device=logits.device)
    return (-torch.nn.functional.cross_entropy(logits, chosen, reduction="none")).tolist()


def penalize(logits: torch.Tensor, tokens: Sequence[int], penalty: float) -> torch.Tensor:
    """One row (V,) with the logits of tokens already there divided (or, below 0, multiplied).

    Keskar et al. 2019 (CTRL), section 4.1, over prompt and generated tokens.
    """
    seen = torch.tensor(sorted(set(tokens)), device=logits.device)
    values = logits[seen]
    result = logits.clone()
    result[seen] = torch.where(values < 0, values * penalty, values / penalty)
    return result


def draw(logits: torch.Tensor, sampling: Sampling, numbers: Sequence[float]) -> list[int]:
    """One token per row of (R, V) by inverse transform of the filtered distribution.

    numbers: a uniform random number for each row. Raises NotFinite.
    """
    scaled = logits.float() / sampling.temperature
    highest = scaled.amax(dim=-1, keepdim=True)
    _require_finite(highest)
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p > 0:
        return _draw_filtered(scaled, highest, sampling, numbers)
    return _draw_all(scaled, highest, numbers)


def _draw_all(scaled: torch.Tensor, highest: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """Inverse transform over the whole vocabulary, in id order, without sorting.

    Two levels: sums of chunks pick the chunk, a running sum within it picks the token.
    """
    rows, size = scaled.shape
    weights = (scaled - highest).exp_()
    pad = -size % CHUNK
    if pad:
        weights = torch.nn.functional.pad(weights, (0, pad))
    chunks = weights.view(rows, -1, CHUNK)
    ends = chunks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)  # (R, chunks)
    targets = torch.tensor(numbers, dtype=torch.float64, device=scaled.device) * ends[:, -1]
    chunk = torch.searchsorted(ends, targets[:, None], right=True)[:, 0].clamp_(
        max=ends.shape[1] - 1
    )
    index = torch.arange(rows, device=scaled.device)
    before = torch.where(chunk > 0, ends[index, (chunk - 1).clamp(min=0)], 0.0)
    inside = chunks[index, chunk].double().cumsum(dim=-1)
    offset = torch.searchsorted(inside, (targets - before)[:, None], right=True)[:, 0]
    # Rounding can leave the target at the very end of its chunk: take the last token with weight.
    last = (chunks[index, chunk] > 0).int().cumsum(dim=-1).argmax(dim=-1)
    return (chunk * CHUNK + torch.minimum(offset, last)).tolist()


def _draw_filtered(
    scaled: torch.Tensor, highest: torch.Tensor, sampling: Sampling, numbers: Sequence[float]
) -> list[int]:
    """Inverse transform of what the filters leave, likeliest tokens first, equals by id.

    All filters keep a beginning of that order, so what they leave is known by its sum.
    """
    tokens, found = _look(scaled, highest, sampling, numbers)
    chosen = tokens.tolist()
    wide = (~found).nonzero()[:, 0]
    weights = _weights(scaled[wide], highest[wide], _one(scaled)).cpu().numpy()
    for row, part in zip(wide.tolist(), weights, strict=True):
        chosen[row] = _search(part, sampling, numbers[row], _one(scaled))
    return chosen


def _one(scaled: torch.Tensor) -> float:
    """The weight of the likeliest token: so small that no sum over the vocabulary rounds."""
    return 2.0 ** (53 - scaled.shape[1].bit_length())


def _weights(scaled: torch.Tensor, highest: torch.Tensor, one: float) -> torch.Tensor:
    """exp(scaled - highest) in whole numbers (fp64), `one` for 1.

    Their sums are exact in whatever order they are added, which is what makes a search among sums
    of parts give the token that sorting all of them gives.
    """
    return (scaled - highest).exp_().double().mul_(one).round_()


def _look(
    scaled: torch.Tensor, highest: torch.Tensor, sampling: Sampling, numbers: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (R,) from the FIRST_LOOK likeliest of each row; and (R,) whether those suffice."""
    count = min(sampling.top_k + 1 if sampling.top_k else FIRST_LOOK, FIRST_LOOK, scaled.shape[1])
    one = _one(scaled)
    values, ids = torch.topk(scaled, count, dim=-1)
    weights = _weights(values, highest, one)
    ends = weights.cumsum(dim=-1)
    kept = ends[:, -1:]
    if sampling.top_k:
        kept = ends[:, min(sampling.top_k, count) - 1, None]
    if sampling.top_p < 1:
        mass = kept
        if not sampling.top_k:
            mass = _weights(scaled, highest, one).sum(dim=-1, keepdim=True)
        place = torch.searchsorted(ends, sampling.top_p * mass).clamp_(max=count - 1)
        kept = torch.minimum(kept, ends.gather(1, place))
    if sampling.min_p > 0:
        likely = torch.where(weights >= sampling.min_p * one, weights, 0.0)
        kept = torch.minimum(kept, likely.sum(dim=-1, keepdim=True))
    uniform_numbers = torch.tensor(numbers, dtype=torch.float64, device=scaled.device)
    goal = torch.minimum((uniform_numbers[:, None] * kept).floor() + 1, kept)
    place = torch.searchsorted(ends, goal).clamp_(max=count - 1)
    # A sum that the candidates do not pass may lie anywhere below, unless nothing is below; and
    # among equal weights topk has no order.
    passed = (kept[:, 0] < ends[:, -1]) | (weights[:, -1] == 0)
    found = passed & ((weights == weights.gather(1, place)).sum(dim=-1) == 1)
    if sampling.top_k >= count:
        found = torch.zeros_like(found)
    return ids.gather(1, place)[:, 0], found


def _search(weights: np.ndarray, sampling: Sampling, number: float, one: float) -> int:
    """The token of one row with weights (V,), by histograms of the weights' leading bits."""
    kept = weights.sum()
    bits = weights.astype(np.float32).view(np.int32)
    below = bits.max() - bits  # ascends as weights descend
    coarse = np.minimum(below >> 16, COARSE)  # the last one: weights of 0
    coarse_sums = np.bincount(coarse, weights)

    def reach(goal: float, amounts: np.ndarray, sums: np.ndarray) -> tuple[int, float]:
        """The token with which the running sum of amounts reaches goal, and that sum.

        sums: of the amounts in each of `coarse`.
        """
        at, before = _bucket(sums, 0.0, goal)
        members = np.flatnonzero(coarse == at)
        fine = (below[members] & 0xFFFF) >> 4
        at, before = _bucket(np.bincount(fine, amounts[members]), before, goal)
        members = members[fine == at]
        members = members[np.argsort(-weights[members], kind="stable")]
        ends = before + amounts[members].cumsum()
        at = int(np.searchsorted(ends, goal))
        return int(members[at]), float(ends[at])

    if 0 < sampling.top_k < len(weights):
        each = np.ones(len(weights))
        last = weights[reach(sampling.top_k, each, np.bincount(coarse))[0]]
        above = weights[weights > last]
        kept = above.sum() + (sampling.top_k - len(above)) * last
    if sampling.top_p < 1:
        kept = reach(sampling.top_p * kept, weights, coarse_sums)[1]
    if sampling.min_p > 0:
        kept = min(kept, weights[weights >= sampling.min_p * one].sum())
    return reach(min(math.floor(number * kept) + 1, kept), weights, coarse_sums)[0]


def _bucket(sums: np.ndarray, before: float, goal: float) -> tuple[int, float]:
    """Which of the sums, added up in order onto `before`, reaches goal; what there is before it."""
    ends = before + sums.cumsum()
    at = int(np.searchsorted(ends, goal))
    return at, ends[at] - sums[at]
