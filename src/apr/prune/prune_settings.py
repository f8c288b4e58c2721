"""What `apr prune` is asked to do. Standard library only: the command line reads its flags here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from apr.common.errors import UsageError

Allocation = Literal["uniform", "owl", "global"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)


@dataclass(frozen=True)
class Pattern:
    """N:M: `kept` of every `group` neighbouring inputs of an output (Mishra et al. 2021: 2:4)."""

    kept: int
    group: int

    @property
    def zeros(self) -> int:
        return self.group - self.kept

    @property
    def sparsity(self) -> float:
        return self.zeros / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    def check_divides(self, columns: int, name: str = "a matrix") -> None:
        """Raises UsageError when rows of `columns` weights are no whole number of groups."""
        if columns % self.group:
            raise UsageError(
                f"`pattern` {self} does not divide the rows of {name}, which have {columns} weights"
            )


def parse_pattern(text: str) -> Pattern:
    """ "2:4" to a Pattern. Raises UsageError for anything that is no N:M with 0 < N < M."""
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
    kept, group = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < kept < group:
        raise UsageError(f"`pattern` {text} is no N:M", "e.g. 2:4, which keeps 2 of every 4")
    return Pattern(kept, group)


@dataclass(frozen=True)
class PruneSettings:
    """method: one of `prune_methods.METHODS`, where it is checked, too. sparsity: part of the
    weights of the layers' matrices that becomes zero, or goes (methods that make the model
    smaller). pattern: N:M; says the sparsity. allocation: the same in every layer; OWL (Yin et al.
    2024), which spares layers with outliers; or one threshold for the whole model (magnitude).
    calibration: "builtin", "wikitext-2" or files. sequences, sequence_length: of the calibration.
    owl_spread, owl_outlier: lambda and M of OWL. dtype, device: what layers are run in. damping,
    kv_heads, importance: options of some methods; None: the method's default.
    """

    model: str
    method: str
    sparsity: float
    pattern: Pattern | None = None
    allocation: Allocation = "uniform"
    calibration: tuple[str, ...] = ("builtin",)
    sequences: int = 128
    sequence_length: int = 512
    seed: int = 0
    owl_spread: float = 0.08
    owl_outlier: float = 5.0
    damping: float | None = None
    kv_heads: int | None = None
    importance: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.allocation not in ALLOCATIONS:
            raise UsageError(
                f"`allocation` {self.allocation} is unknown", f"one of {', '.join(ALLOCATIONS)}"
            )
        if not 0 < self.sparsity < 1:
            raise UsageError(f"`sparsity` is {self.sparsity}", "it must lie between 0 and 1")
        if self.pattern is not None and self.pattern.sparsity != self.sparsity:
            raise UsageError(
                f"`pattern` {self.pattern} is a sparsity of {self.pattern.sparsity:g},"
                f" `sparsity` says {self.sparsity:g}",
                "leave `sparsity` out",
            )
        if self.pattern is not None and self.allocation != "uniform":
            raise UsageError(f"`allocation` {self.allocation} has no meaning with `pattern`")
        for name in ("sequences", "sequence_length"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}", "it must be 1 or more")
        if not 0 <= self.owl_spread < 1:
            raise UsageError(f"`owl_spread` is {self.owl_spread}", "from 0 to below 1")
        if not self.calibration:
            raise UsageError("`calibration` names no text")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pattern": str(self.pattern) if self.pattern else None}


def make_settings(
    model: str, method: str, sparsity: float | None, pattern: str | None, **more: Any
) -> PruneSettings:
    """Settings whose sparsity may come from the pattern. Raises UsageError naming the field."""
    found = parse_pattern(pattern) if pattern else None
    if sparsity is None and found is None:
        raise UsageError("nothing says how much to prune", "`sparsity` 0.5 or `pattern` 2:4")
    part = found.sparsity if sparsity is None and found else sparsity
    return PruneSettings(model, method, part, found, **more)  # type: ignore[arg-type]
