"""From logits to tokens. Each row's token depends on its logits, its settings and its key alone.

Random numbers are counter-based (Salmon et al. 2011, Philox): the number for (seed, sample, step)
is computed from these three, so it does not matter what else is in the batch or in which order
samples run. Filters follow Hugging Face's order: repetition penalty, temperature, top-k, top-p,
min-p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from apr.engine.request import Sampling

# Candidates looked at first when top-p or min-p cut the tail; more only if they do not suffice.
FIRST_LOOK = 256
CHUNK = 256


def uniform(seed: int, sample: int, step: int) -> float:
    """The random number in [0, 1) of one draw, 53 bits."""
    key = np.array([seed & (2**64 - 1), sample], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=step).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def greedy(logits: torch.Tensor) -> list[int]:
    """The highest logit of each row of (R, V), the lowest id among equals."""
    if logits.device.type == "cpu":
        return logits.numpy().argmax(axis=-1).tolist()
    return logits.argmax(dim=-1).tolist()


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """log softmax(logits)[token] of each row, fp32, of the unmodified distribution."""
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    return (chosen - torch.logsumexp(logits, dim=-1)).tolist()


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

    numbers: a uniform random number for each row.
    """
    scaled = logits.float() / sampling.temperature
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p > 0:
        return _draw_filtered(scaled, sampling, numbers)
    return _draw_all(scaled, numbers)


def _draw_all(scaled: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """Inverse transform over the whole vocabulary, in id order, without sorting.

    Two levels: sums of chunks pick the chunk, a running sum within it picks the token.
    """
    rows, size = scaled.shape
    weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp_()
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


def kept(scaled: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The filtered distribution of each row: (weights, ids), both (R, M), highest first.

    weights are unnormalised and 0 where a token is cut. M is what the widest row needs; the ids
    beyond a row's own width mean nothing.
    """
    vocabulary = scaled.shape[1]
    count = min(sampling.top_k or FIRST_LOOK, vocabulary)
    highest = scaled.amax(dim=-1, keepdim=True)
    limit = None  # mass of likelier tokens from which top-p cuts; after top-k, of what that left
    if sampling.top_p < 1 and not sampling.top_k:
        mass = (scaled - highest).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64)
        limit = sampling.top_p * mass
    weights, ids = _look(scaled, highest, limit, sampling, count)
    while not sampling.top_k and count < vocabulary:
        # Where the last candidate is kept, the cut-off lies further down: look again, wider, but
        # only in those rows.
        wide = (weights[:, -1] > 0).nonzero()[:, 0]
        if len(wide) == 0:
            break
        more = min(4 * count, vocabulary)
        weights = torch.nn.functional.pad(weights, (0, more - count))
        ids = torch.nn.functional.pad(ids, (0, more - count))
        count = more
        part = limit[wide] if limit is not None else None
        weights[wide], ids[wide] = _look(scaled[wide], highest[wide], part, sampling, count)
    return weights, ids


def _look(
    scaled: torch.Tensor,
    highest: torch.Tensor,
    limit: torch.Tensor | None,
    sampling: Sampling,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest tokens of each row (R, count), with weight 0 where they are cut."""
    values, ids = torch.topk(scaled, count, dim=-1)
    weights = (values - highest).exp().double()
    keep = weights >= sampling.min_p  # the highest weight is 1
    if sampling.top_p < 1:
        if limit is None:
            limit = sampling.top_p * weights.sum(dim=-1, keepdim=True)
        keep &= weights.cumsum(dim=-1) - weights < limit
    keep[:, 0] = True
    return torch.where(keep, weights, 0.0), ids


def _draw_filtered(scaled: torch.Tensor, sampling: Sampling, numbers: Sequence[float]) -> list[int]:
    weights, ids = kept(scaled, sampling)
    ends = weights.cumsum(dim=-1)
    targets = torch.tensor(numbers, dtype=torch.float64, device=scaled.device) * ends[:, -1]
    place = torch.searchsorted(ends, targets[:, None], right=True)
    last = (weights > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(place, last))[:, 0].tolist()
