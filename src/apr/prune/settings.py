"""What `apr prune` is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from apr.calibrate.texts import BUILTIN
from apr.common.errors import UsageError
from apr.prune.pattern import Pattern, parse_pattern

Method = Literal["magnitude", "wanda", "sparsegpt", "structured", "depth", "width"]
Allocation = Literal["uniform", "owl", "global"]
Importance = Literal["activations", "random"]
METHODS: tuple[str, ...] = get_args(Method)
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)
IMPORTANCES: tuple[str, ...] = get_args(Importance)


@dataclass(frozen=True)
class PruneSettings:
    """sparsity: part of the weights of the layers' matrices that becomes zero, or goes (methods
    that shrink the model: structured, depth, width). pattern: N:M; says the sparsity. allocation:
    the same in every layer; OWL (Yin et al. 2024), which spares layers with outliers; or one
    threshold for the whole model (magnitude). calibration: "builtin", "wikitext-2" or files.
    sequences, length: of the calibration. owl_spread, owl_outlier: lambda and M of OWL. damping:
    of Hessians. kv_groups: KV heads a structured model loses; None: as the sparsity says.
    importance: how heads, channels, layers and dimensions that go are chosen; random is for
    comparison. dtype, device: what layers are run in.
    """

    model: str
    method: Method
    sparsity: float
    pattern: Pattern | None = None
    allocation: Allocation = "uniform"
    calibration: tuple[str, ...] = (BUILTIN,)
    sequences: int = 128
    length: int = 512
    seed: int = 0
    owl_spread: float = 0.08
    owl_outlier: float = 5.0
    damping: float = 0.01
    kv_groups: int | None = None
    importance: Importance = "activations"
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        _one_of("--method", self.method, METHODS)
        _one_of("--allocation", self.allocation, ALLOCATIONS)
        _one_of("--importance", self.importance, IMPORTANCES)
        if not 0 < self.sparsity < 1:
            raise UsageError(f"--sparsity is {self.sparsity}", "it must lie between 0 and 1")
        self._check_method()
        if self.pattern is not None and self.pattern.sparsity != self.sparsity:
            raise UsageError(
                f"--pattern {self.pattern} is a sparsity of {self.pattern.sparsity:g},"
                f" --sparsity says {self.sparsity:g}",
                "leave --sparsity out",
            )
        if self.pattern is not None and self.allocation != "uniform":
            raise UsageError(f"--allocation {self.allocation} has no meaning with --pattern")
        if self.allocation == "global" and self.method != "magnitude":
            raise UsageError("--allocation global is for --method magnitude")
        for flag, value in (("--sequences", self.sequences), ("--sequence-length", self.length)):
            if value < 1:
                raise UsageError(f"{flag} is {value}", "it must be 1 or more")
        for flag, real in (("--owl-spread", self.owl_spread), ("--damping", self.damping)):
            if not 0 <= real < 1:
                raise UsageError(f"{flag} is {real}", "from 0 to below 1")
        if not self.calibration:
            raise UsageError("--calibration names no text")

    def _check_method(self) -> None:
        """Raises UsageError for settings that mean nothing to the method."""
        if self.shrinks and self.pattern is not None:
            raise UsageError(f"--pattern has no meaning with --method {self.method}")
        if self.shrinks and self.allocation != "uniform":
            raise UsageError(
                f"--allocation {self.allocation} has no meaning with --method {self.method}",
                "config.json has one size for all layers",
            )
        if not self.shrinks and self.importance != "activations":
            raise UsageError(f"--importance has no meaning with --method {self.method}")
        if self.kv_groups is not None and self.method != "structured":
            raise UsageError("--kv-heads is for --method structured")

    @property
    def shrinks(self) -> bool:
        """Whether shapes change, instead of weights becoming zero."""
        return self.method in ("structured", "depth", "width")

    @property
    def runs_layers(self) -> bool:
        """Whether calibration is needed at all."""
        return self.method != "magnitude" or self.allocation == "owl"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pattern": str(self.pattern) if self.pattern else None}


def make_settings(
    model: str, method: str, sparsity: float | None, pattern: str | None, **more: Any
) -> PruneSettings:
    """Settings from the words of a command line; raises UsageError naming the flag."""
    found = parse_pattern(pattern) if pattern else None
    if sparsity is None and found is None:
        raise UsageError("nothing says how much to prune", "--sparsity 0.5 or --pattern 2:4")
    part = found.sparsity if sparsity is None and found else sparsity
    return PruneSettings(model, method, part, found, **more)  # type: ignore[arg-type]


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{flag} {value} is unknown", f"one of {', '.join(known)}")
