"""What a run of training is asked to do, checked before anything is loaded."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.train.base import METHODS
from apr.train.examples import FimSettings
from apr.train.lora import LoraSettings

Schedule = Literal["cosine", "linear", "constant"]
SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TrainSettings:
    """learning_rate: its peak. epochs: passes over the data, unless max_steps says how many
    optimizer steps. batch_size: sequences in a micro-batch; accumulate: micro-batches in a step.
    warmup: steps, or a part of all steps below 1. lora_plus: how many times the learning rate of A
    that of B is (LoRA+, Hayou et al. 2024, arXiv:2402.12354). patience: epochs without a better
    evaluation before the run ends. save_every: steps between checkpoints; None: at the end of
    epochs.
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


@dataclass(frozen=True)
class FinetuneRequest:
    """model: any reference. data, eval_data: files of rows, or hf://datasets/...; eval_split: part
    of the documents held out instead. adapter: PEFT folder to train on. dtype: of weights and
    activations; what is trained is kept in fp32. max_length: tokens of a sequence. recompute: run
    layers again in the backward pass instead of keeping what they computed. keep_mask: weights of
    the layers' matrices that are zero (a pruned model's) stay zero. memory: bytes that method
    "auto" may plan with; it is the first of `prepare.AUTO` that fits.
    """

    model: str
    data: tuple[str | Path, ...]
    method: str = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    adapter: Path | None = None
    eval_data: tuple[str | Path, ...] = ()
    eval_split: float = 0.0
    dtype: str = "bf16"
    max_length: int = 512
    packing: bool = True
    chat: bool = False
    skip_bad_rows: bool = False
    recompute: bool = False
    keep_mask: bool = False
    memory: int | None = None
    fim: FimSettings = field(default_factory=FimSettings)

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, "auto"):
            known = ", ".join(METHODS)
            raise UsageError(f"--method {self.method} is unknown", f"one of {known}, auto")
        if (self.memory is not None) != (self.method == "auto"):
            raise UsageError("--method auto and --memory go together", "--memory 8GB")
        if self.dtype not in ("bf16", "fp32"):
            raise UsageError(f"--dtype {self.dtype} is unknown", "bf16 or fp32")
        if self.max_length < 2:
            raise UsageError(f"--max-seq-len is {self.max_length}", "it must be 2 or more")
        if not 0 <= self.eval_split < 1:
            raise UsageError(f"--eval-split is {self.eval_split}", "0 or more, below 1")
        if self.eval_split and self.eval_data:
            raise UsageError("--eval-split and --eval-data exclude each other", "choose one")
        if self.train.patience is not None and not (self.eval_split or self.eval_data):
            raise UsageError(
                "--patience without held-out data", "--eval-split 0.05, or --eval-data FILE"
            )
        if self.adapter is not None and self.method == "full":
            raise UsageError("--adapter is trained by --method lora or qlora only")
        if self.keep_mask:
            _check_keep_mask(self)

    @property
    def little_memory(self) -> bool:
        """Whether memory counts more than the last bit of speed: see `apr.common.memory`."""
        return self.recompute or self.method == "qlora"

    def to_json(self) -> dict[str, Any]:
        """What the result depends on, as plain data."""
        return json.loads(json.dumps(asdict(self), default=str))


def _check_keep_mask(request: FinetuneRequest) -> None:
    for flag, given in (("--dora", request.lora.dora), ("--lora-dropout", request.lora.dropout)):
        if given and request.method != "full":
            raise UsageError(f"--keep-mask does not go with {flag}", f"leave out {flag}")
