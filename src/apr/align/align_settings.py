"""What `apr align` is asked to do: its flags. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.settings import check, option
from apr.train.train_settings import METHOD, Method, RunSettings

OBJECTIVE = "Objective"

# What each method may be told, and what it does when it is not.
DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {
        "loss": "sigmoid",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "length_normalized": False,
        "sft_weight": 0.0,
    },
    "orpo": {"lambda_": 0.1, "nll_over": "sequence"},
    "simpo": {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0, "sft_weight": 0.0},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
}
# Losses of DPO that smoothed labels or averages over tokens have no meaning for.
_WITHOUT = {
    "label_smoothing": ("hinge", "ipo"),
    "length_normalized": ("ipo",),  # which compares averages anyway
}
# Peak learning rates where all weights are trained: papers' or, for SimPO, the middle of its range.
_RATES = {"dpo": 1e-6, "orpo": 8e-6, "simpo": 1e-6, "kto": 1e-6}


@dataclass(frozen=True)
class PreferenceSettings:
    """How preferences are learned; what is None is the method's default (`DEFAULTS`).

    algorithm: dpo (Rafailov et al. 2023, arXiv:2305.18290), orpo (Hong et al. 2024,
    arXiv:2403.07691), simpo (Meng et al. 2024, arXiv:2405.14734) or kto (Ethayarajh et al. 2024,
    arXiv:2402.01306). beta: how strongly log-probability ratios count. loss: of DPO; ipo is of
    Azar et al. 2023 (arXiv:2310.12036), averaged over tokens. label_smoothing: the part of the
    preferences that are taken to be wrong. length_normalized: averages over tokens instead of sums.
    sft_weight: what the mean negative log-likelihood of the chosen answers' tokens counts beside
    the loss; of ORPO it is 1. lambda_: what ORPO's odds ratio counts. nll_over: what that
    log-likelihood is of in ORPO: prompt and answer, as in its authors' code, or the answer alone.
    gamma: SimPO's margin. desirable_weight, undesirable_weight: lambda_D and lambda_U of KTO.
    """

    algorithm: Literal["dpo", "orpo", "simpo", "kto"] = option(
        "dpo", "How preferences are learned: dpo, orpo, simpo or kto.", flag="method", panel=METHOD
    )
    beta: float | None = option(
        None,
        "How much an answer's log-probability, against the reference's, counts."
        " [default: dpo and kto 0.1, simpo 2]",
        above=0,
        panel=OBJECTIVE,
    )
    loss: Literal["sigmoid", "hinge", "ipo"] | None = option(
        None, "dpo: sigmoid, hinge or ipo. [default: sigmoid]", panel=OBJECTIVE
    )
    label_smoothing: float | None = option(
        None,
        "dpo, simpo: share of the preferences that are taken to be wrong. [default: 0]",
        least=0,
        below=0.5,
        panel=OBJECTIVE,
    )
    length_normalized: bool = option(
        False, "dpo: compare averages over an answer's tokens instead of sums.", panel=OBJECTIVE
    )
    sft_weight: float | None = option(
        None,
        "dpo, simpo: what the chosen answers' own likelihood counts beside the preference."
        " [default: 0]",
        least=0,
        panel=OBJECTIVE,
    )
    lambda_: float | None = option(
        None,
        "orpo: what the odds ratio counts beside the likelihood. [default: 0.1]",
        flag="lambda",
        least=0,
        panel=OBJECTIVE,
    )
    nll_over: Literal["sequence", "answer"] | None = option(
        None,
        "orpo: the likelihood of prompt and answer (sequence, as its authors) or of the answer"
        " alone. [default: sequence]",
        panel=OBJECTIVE,
    )
    gamma: float | None = option(
        None,
        "simpo: by how much chosen answers are to be better. [default: 1]",
        least=0,
        panel=OBJECTIVE,
    )
    desirable_weight: float | None = option(
        None, "kto: what good answers count. [default: 1]", least=0, panel=OBJECTIVE
    )
    undesirable_weight: float | None = option(
        None, "kto: what bad answers count. [default: 1]", least=0, panel=OBJECTIVE
    )

    def __post_init__(self) -> None:
        check(self)
        own = DEFAULTS[self.algorithm]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in own and value is None:
                object.__setattr__(self, one.name, own[one.name])
            elif one.name not in ("algorithm", *own) and value not in (None, False):
                fitting = ", ".join(name for name, told in DEFAULTS.items() if one.name in told)
                raise UsageError(
                    f"`{one.name}` has no meaning with `algorithm` {self.algorithm}",
                    f"it is for {fitting}",
                )
        for name, losses in _WITHOUT.items():
            if self.loss in losses and getattr(self, name):
                raise UsageError(f"`{name}` has no meaning with `loss` {self.loss}")

    @property
    def uses_reference(self) -> bool:
        return self.algorithm in ("dpo", "kto")


@dataclass(frozen=True)
class AlignRequest(RunSettings):
    """ref_model: the reference; None: the model as training begins, adapter included."""

    method: Method = option(
        "lora",
        "What is trained: lora, qlora (LoRA on a 4-bit model), full (all weights), or auto with"
        " --memory.",
        flag="train",
        panel=METHOD,
    )
    data: tuple[str, ...] = option(
        (),
        "JSONL, JSON, Parquet or hf://datasets/org/name: {prompt, chosen, rejected} as texts or"
        " messages; for kto also {prompt, completion, label}.",
        repeated=True,
        panel="Data",
    )
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    ref_model: str | None = option(
        None,
        "The model that answers are compared with. [default: the one that training begins with]",
        panel=OBJECTIVE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        algorithm = self.preference.algorithm
        if self.ref_model is not None and not self.preference.uses_reference:
            raise UsageError(
                f"`ref_model` has no meaning with `algorithm` {algorithm}", "it is for dpo, kto"
            )
        if algorithm == "kto" and self.train.batch_size < 2:
            raise UsageError(
                "`batch_size` 1 leaves kto nothing to compare with", "it must be 2 or more"
            )

    @property
    def usual_rate(self) -> float:
        """Ten times as much for adapters as for whole models (arXiv:2602.04998)."""
        return _RATES[self.preference.algorithm] * (1 if self.method == "full" else 10)
