"""Losses against closed forms, at their limits, and every option of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from apr.align.align_settings import DEFAULTS, AlignRequest, PreferenceSettings
from apr.align.losses import dpo, kto, log1mexp, log_odds_ratio, preference, simpo
from apr.align.preferences import Preference, PreferenceBatch, make_batch, with_probes
from apr.common.errors import UsageError
from apr.model.transformer import Transformer
from apr.train.objective import hidden_states, target_logprobs
from apr.train.packing import Document
from apr.train.packing import make_batch as make_documents
from apr.train.train_settings import TrainSettings
from model.zoo import make_pair


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_dpo_is_its_formula() -> None:
    margin = torch.tensor([-3.0, 0.0, 0.5, 8.0])
    for beta in (0.1, 1.0):
        want = [-np.log(sigmoid(beta * m)) for m in margin.tolist()]
        assert dpo(margin, beta).tolist() == pytest.approx(want, rel=1e-6)
        # A part of the labels turned round: the expected loss.
        mixed = [0.8 * -np.log(sigmoid(beta * m)) - 0.2 * np.log(sigmoid(-beta * m))
                 for m in margin.tolist()]  # fmt: skip
        assert dpo(margin, beta, "sigmoid", 0.2).tolist() == pytest.approx(mixed, rel=1e-6)
    assert dpo(margin, 0.5, "hinge").tolist() == pytest.approx([2.5, 1.0, 0.75, 0.0])
    assert dpo(margin, 0.5, "ipo").tolist() == pytest.approx([16.0, 1.0, 0.25, 49.0])


def test_log1mexp_and_odds_near_certainty() -> None:
    """Where naive formulas give NaN or lose every digit."""
    points = [-1e-6, -1e-4, -0.3, -0.6931, -0.7, -5.0, -50.0]
    x = torch.tensor(points, requires_grad=True)
    found = log1mexp(x)
    exact = torch.log(-torch.expm1(x.detach().double()))
    assert found.tolist() == pytest.approx(exact.tolist(), rel=1e-5, abs=1e-12)
    found.sum().backward()
    slope = x.detach().double().exp() / torch.expm1(x.detach().double())
    assert x.grad is not None and x.grad.tolist() == pytest.approx(slope.tolist(), rel=1e-4)
    # Log-probabilities of 0: an answer the model is sure of, as fp32 has it.
    for chosen, rejected in ((0.0, -2.0), (-2.0, 0.0), (0.0, 0.0), (-1e-9, -80.0)):
        pair = torch.tensor([chosen, rejected], requires_grad=True)
        ratio = log_odds_ratio(pair[:1], pair[1:])
        torch.nn.functional.logsigmoid(ratio).sum().backward()
        assert torch.isfinite(ratio).all()
        assert pair.grad is not None and torch.isfinite(pair.grad).all()


def test_simpo_and_kto_are_their_formulas() -> None:
    chosen, rejected = torch.tensor([-0.2, -1.0]), torch.tensor([-0.9, -0.4])
    want = [-np.log(sigmoid(2.0 * (c - r) - 0.6)) for c, r in
            zip(chosen.tolist(), rejected.tolist(), strict=True)]  # fmt: skip
    assert simpo(chosen, rejected, 2.0, 0.6).tolist() == pytest.approx(want, rel=1e-6)
    ratio, good = torch.tensor([1.0, 1.0, -2.0]), torch.tensor([True, False, False])
    want = [1 - sigmoid(0.5 * (1.0 - 0.3)), 2 * (1 - sigmoid(0.5 * (0.3 - 1.0))),
            2 * (1 - sigmoid(0.5 * (0.3 + 2.0)))]  # fmt: skip
    found = kto(ratio, good, torch.tensor(0.3), 0.5, 1.0, 2.0)
    assert found.tolist() == pytest.approx(want, rel=1e-6)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> Transformer:
    """gemma3 has windows, and layers that see all."""
    return make_pair(request.param)[1].requires_grad_(True)


def some(count: int = 3) -> list[Preference]:
    random = np.random.default_rng(3)

    def ids(least: int, most: int) -> np.ndarray:
        return random.integers(1, 60, int(random.integers(least, most))).astype(np.int32)

    def answer() -> Document:
        found = ids(3, 9)
        learned = np.ones(len(found), bool)
        learned[: int(random.integers(0, 2))] = False  # a prompt's end that tokens do not share
        return Document(found, learned)

    return [Preference(ids(4, 12), (answer(), answer()), (True, False)) for _ in range(count)]


def whole(one: Preference, answer: Document) -> Document:
    before = np.zeros(len(one.prompt), bool)
    return Document(
        np.concatenate([one.prompt, answer.ids]), np.concatenate([before, answer.trained])
    )


def test_shared_prompts_change_nothing(model: Transformer) -> None:
    """Log-probabilities and gradients of answers behind one prompt are those of documents."""
    preferences = with_probes(some())
    documents = [whole(one, answer) for one in preferences for answer in one.answers]
    weights = torch.linspace(-1, 1, sum(d.targets for d in documents))

    def run(batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        found = target_logprobs(model, batch)
        (found * weights).sum().backward()
        return found.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    shared, slopes = run(make_batch(preferences, multiple=16).packed)
    apart, others = run(make_documents(documents))
    assert torch.allclose(shared, apart, atol=1e-5)
    for here, there in zip(slopes, others, strict=True):
        # fp32 sums in another order.
        assert torch.allclose(here, there, atol=1e-5 * max(1.0, float(there.abs().max())))
    again, _ = run(make_batch(preferences).packed)
    assert torch.allclose(again, shared, atol=1e-5)
    assert hidden_states(model, make_batch(preferences).packed, True).isfinite().all()


def batch_of(algorithm: str, nll_over: str | None) -> PreferenceBatch:
    preferences = with_probes(some()) if algorithm == "kto" else some()
    made = make_batch(preferences, over_prompts=nll_over == "sequence")
    reference = torch.linspace(-5.0, -3.0, len(made.owner))
    return replace(made, reference=reference if algorithm in ("dpo", "kto") else None)


OTHER = {
    "beta": 0.7, "loss": "hinge", "label_smoothing": 0.2, "length_normalized": True,
    "sft_weight": 0.5, "lambda_": 0.9, "nll_over": "answer", "gamma": 0.3, "desirable_weight": 2.0,
    "undesirable_weight": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("algorithm", DEFAULTS)
@pytest.mark.parametrize("name", OTHER)
def test_every_option_counts_or_is_refused(model: Transformer, algorithm: str, name: str) -> None:
    def loss(**changes: Any) -> float:
        settings = PreferenceSettings(algorithm=algorithm, **changes)  # type: ignore[arg-type]
        found, _ = preference(settings)(model, batch_of(algorithm, settings.nll_over))
        return float(found.detach())

    if name in DEFAULTS[algorithm]:
        assert abs(loss(**{name: OTHER[name]}) - loss()) > 1e-4
    else:
        with pytest.raises(UsageError, match=f"`{name}` has no meaning with `algorithm`"):
            loss(**{name: OTHER[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "`beta` is 0"),
        ({"label_smoothing": 0.5}, "`label_smoothing` is 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "no meaning with `loss` ipo"),
        ({"loss": "ipo", "length_normalized": True}, "no meaning with `loss` ipo"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "no meaning with `loss` hinge"),
        ({"loss": "cubic"}, "`loss` cubic is unknown"),
        ({"algorithm": "ppo"}, "`algorithm` ppo is unknown"),
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PreferenceSettings(**changes)


def test_requests_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match="`ref_model` has no meaning with `algorithm` orpo"):
        AlignRequest("m", preference=PreferenceSettings("orpo"), ref_model="n")
    with pytest.raises(UsageError, match="`batch_size` 1 leaves kto nothing"):
        AlignRequest("m", preference=PreferenceSettings("kto"), train=TrainSettings(batch_size=1))
    assert AlignRequest("m").train.learning_rate == pytest.approx(1e-5)
    assert AlignRequest("m", method="full").train.learning_rate == pytest.approx(1e-6)


def test_an_unmoved_model_has_nothing_to_tell(model: Transformer) -> None:
    """Where the reference is the model: log 2, no rewards, no distance."""
    made = make_batch(some())
    with torch.no_grad():
        known = target_logprobs(model, made.packed)
    found, sums = preference(PreferenceSettings())(model, replace(made, reference=known))
    assert float(found.detach()) == pytest.approx(3 * np.log(2), rel=1e-5)
    assert sums["rewards_margin"] == pytest.approx(0, abs=1e-5)
    assert sums["kl"] == pytest.approx(0, abs=1e-9)
