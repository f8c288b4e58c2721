"""What a run of training is asked to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.train.base import METHODS
from apr.train.fim import FimSettings
from apr.train.lora import LoraSettings
from apr.train.settings import TrainSettings


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
        """Whether memory counts more than the last bit of speed: see `apr.common.heap`."""
        return self.recompute or self.method == "qlora"

    def to_json(self) -> dict[str, Any]:
        """What the result depends on, as plain data."""
        return json.loads(json.dumps(asdict(self), default=str))


def _check_keep_mask(request: FinetuneRequest) -> None:
    for flag, given in (("--dora", request.lora.dora), ("--lora-dropout", request.lora.dropout)):
        if given and request.method != "full":
            raise UsageError(f"--keep-mask does not go with {flag}", f"leave out {flag}")
