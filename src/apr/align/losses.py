"""Losses of preferences, from log-probabilities of answers: pure functions on tensors, in fp32.

chosen, rejected: (P,), of pairs: sums over an answer's tokens, or averages, of log-probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from apr.align.align_settings import PreferenceSettings
from apr.align.preferences import PreferenceBatch
from apr.model.transformer import Transformer
from apr.train.loop import Objective
from apr.train.objective import target_logprobs

_LN_HALF = -math.log(2)


def dpo(
    margin: torch.Tensor, beta: float, loss: str = "sigmoid", label_smoothing: float = 0.0
) -> torch.Tensor:
    """Of each pair. margin: (P,), how much more the chosen answer's log-probability has grown over
    the reference's than the rejected one's (Rafailov et al. 2023, eq. 7).

    label_smoothing: the part of the pairs that is taken to be the other way round (the authors'
    "conservative DPO"). hinge: Zhao et al. 2023 (SLiC). ipo: Azar et al. 2023, eq. 17, of averages.
    """
    if loss == "hinge":
        return torch.relu(1 - beta * margin)
    if loss == "ipo":
        return (margin - 1 / (2 * beta)).square()
    return (
        -F.logsigmoid(beta * margin) * (1 - label_smoothing)
        - F.logsigmoid(-beta * margin) * label_smoothing
    )


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) of x < 0, exact to rounding near 0 and far from it (Mächler 2012)."""
    near = torch.log(-torch.expm1(x.clamp(min=_LN_HALF)))
    far = torch.log1p(-torch.exp(x.clamp(max=_LN_HALF)))
    return torch.where(x > _LN_HALF, near, far)


# The largest average log-probability whose odds are finite in fp32; beyond, p is 1 to rounding.
SURE = -1e-7


def log_odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """log of odds(chosen) / odds(rejected), odds(p) = p / (1 - p), of averages (Hong et al. 2024,
    eq. 4 and 5).
    """
    chosen, rejected = chosen.clamp(max=SURE), rejected.clamp(max=SURE)
    return chosen - rejected - (log1mexp(chosen) - log1mexp(rejected))


def simpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Of each pair, of averages (Meng et al. 2024, eq. 6)."""
    return dpo(chosen - rejected - gamma / beta, beta, "sigmoid", label_smoothing)


def kto(
    ratio: torch.Tensor,
    good: torch.Tensor,
    kl: torch.Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """Of each answer. ratio: (A,), log-probability over the reference's; good: bool (A,); kl: how
    far the two are apart anyway, a number without gradient (Ethayarajh et al. 2024, eq. 8).
    """
    distance = torch.where(good, ratio - kl, kl - ratio)
    weight = torch.where(good, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(beta * distance))


def preference(settings: PreferenceSettings, recompute: bool = False) -> Objective[PreferenceBatch]:
    """What a step computes. Sums besides: rewards_chosen, rewards_rejected, rewards_margin,
    accuracy (of pairs whose chosen answer has the higher reward), nll (nats per token of the chosen
    answers, or of what ORPO takes it over), kl (see `_estimated_kl`).
    """

    def objective(
        model: Transformer, batch: PreferenceBatch
    ) -> tuple[torch.Tensor, dict[str, float]]:
        logprobs = target_logprobs(model, batch.packed, recompute)
        if settings.algorithm == "kto":
            return _kto(settings, batch, logprobs)
        return _pairs(settings, batch, logprobs)

    return objective


def _pairs(
    settings: PreferenceSettings, batch: PreferenceBatch, logprobs: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    sums = _sums(batch, logprobs)
    averages = sums / batch.lengths
    known = _sums(batch, batch.reference) if batch.reference is not None else None
    rewarded = averages if known is None else sums - known
    averaged = known is not None and (settings.length_normalized or settings.loss == "ipo")
    score = rewarded / batch.lengths if averaged else rewarded
    chosen, rejected = score[batch.good], score[~batch.good]
    nll = _nll(settings, batch, logprobs)
    more: dict[str, Any] = {}
    if settings.algorithm == "orpo":
        assert settings.lambda_ is not None
        odds = log_odds_ratio(chosen, rejected)
        losses = nll - settings.lambda_ * F.logsigmoid(odds)
        more["log_odds"] = odds
        scale = settings.lambda_
    else:
        assert settings.beta is not None
        scale = settings.beta
        smoothing = settings.label_smoothing or 0.0
        if settings.algorithm == "simpo":
            assert settings.gamma is not None
            losses = simpo(chosen, rejected, scale, settings.gamma, smoothing)
        else:
            losses = dpo(chosen - rejected, scale, settings.loss or "sigmoid", smoothing)
        losses = losses + (settings.sft_weight or 0.0) * nll
    rewarded = scale * rewarded.detach()
    rewards = rewarded[batch.good], rewarded[~batch.good]
    return losses.sum(), _told(batch, *rewards, {"nll": nll.expand(len(chosen)), **more}, logprobs)


def _kto(
    settings: PreferenceSettings, batch: PreferenceBatch, logprobs: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    assert settings.beta is not None and batch.reference is not None
    assert settings.desirable_weight is not None and settings.undesirable_weight is not None
    ratio = _sums(batch, logprobs) - _sums(batch, batch.reference)
    kl = ratio[~batch.judged].detach().mean().clamp(min=0)
    judged, good = ratio[batch.judged], batch.good[batch.judged]
    losses = kto(
        judged, good, kl, settings.beta, settings.desirable_weight, settings.undesirable_weight
    )
    rewards = settings.beta * judged.detach()
    sums = {
        "rewards_chosen": rewards[good].sum(),
        "rewards_rejected": rewards[~good].sum(),
        "accuracy": ((rewards > settings.beta * kl) == good).sum(),
        "kl": kl * batch.weight,
    }
    return losses.sum(), {name: float(value) for name, value in sums.items()}


def _sums(batch: PreferenceBatch, values: torch.Tensor) -> torch.Tensor:
    """(A,) sums over each answer's targets."""
    count = len(batch.lengths)
    room = torch.zeros(count + batch.prompts, device=values.device)
    return room.index_add(0, batch.owner, values)[:count]


def _nll(
    settings: PreferenceSettings, batch: PreferenceBatch, logprobs: torch.Tensor
) -> torch.Tensor:
    """Nats per token of the chosen answers of the batch, with prompts where the batch has them."""
    count = len(batch.lengths)
    of_chosen = torch.cat([batch.good, batch.good.new_ones(batch.prompts)])[batch.owner]
    counted = of_chosen if settings.nll_over == "sequence" else of_chosen & (batch.owner < count)
    return -logprobs[counted].mean()


def _told(
    batch: PreferenceBatch,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    more: dict[str, torch.Tensor],
    logprobs: torch.Tensor,
) -> dict[str, float]:
    told = {
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "rewards_margin": chosen - rejected,
        "accuracy": (chosen > rejected).float(),
        **more,
    }
    if batch.reference is not None:
        told["kl"] = _estimated_kl(logprobs.detach() - batch.reference).expand(len(chosen))
    return {name: float(value.detach().sum()) for name, value in told.items()}


def _estimated_kl(ratio: torch.Tensor) -> torch.Tensor:
    """KL of the reference from the model, nats per token, as if the reference had written the
    answers: the mean of r - 1 - log r, which no token makes negative (Schulman 2020).
    """
    return (torch.expm1(ratio) - ratio).mean()
