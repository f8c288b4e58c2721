"""How a training run goes: everything the loop is told, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from apr.common.errors import UsageError

Schedule = Literal["cosine", "linear", "constant"]
SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TrainSettings:
    """learning_rate: its peak. epochs: passes over the data, unless max_steps says how many
    optimizer steps. batch_size: sequences in a micro-batch; accumulate: micro-batches in a step.
    warmup: steps, or a part of all steps below 1. lora_plus: B's learning rate by A's (Hayou et
    al. 2024, arXiv:2402.12354). patience: epochs without a better evaluation before the run ends.
    save_every: steps between checkpoints; None: at the end of epochs.
    """

    learning_rate: float = 2e-4
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    lora_plus: float = 1.0
    patience: int | None = None
    save_every: int | None = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--epochs", self.epochs, 1),
            ("--max-steps", self.max_steps, 1),
            ("--batch-size", self.batch_size, 1),
            ("--accumulate", self.accumulate, 1),
            ("--patience", self.patience, 1),
            ("--save-every", self.save_every, 1),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{flag} is {value}", f"it must be {least} or more")
        for flag, number in (("--lr", self.learning_rate), ("--lora-plus", self.lora_plus)):
            if not (math.isfinite(number) and number > 0):
                raise UsageError(f"{flag} is {number}", "it must be above 0")
        for flag, number in (
            ("--warmup", self.warmup),
            ("--weight-decay", self.weight_decay),
            ("--max-grad-norm", self.max_grad_norm),
        ):
            if not (math.isfinite(number) and number >= 0):
                raise UsageError(f"{flag} is {number}", "it must be 0 or more")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"--schedule {self.schedule} is unknown", ", ".join(SCHEDULES))

    def warmup_steps(self, total: int) -> int:
        return math.ceil(self.warmup * total) if self.warmup < 1 else round(self.warmup)

    def rate_factor(self, step: int, total: int) -> float:
        """What the learning rate is multiplied by at step 0 .. total - 1.

        Warm-up reaches the peak at its last step; cosine and linear decay reach 0 after the last.
        """
        warmup = self.warmup_steps(total)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        if self.schedule == "linear":
            return 1.0 - progress
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0
