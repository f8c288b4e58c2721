"""How well models will merge: how far each moved from the base, and whether they agree.

For every layer the deltas' sizes, their cosines and the share of elements they pull in opposite
directions. Nothing is written; tensors are read once, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from apr.common.errors import AprError, UsageError
from apr.common.progress import ByteProgress
from apr.kernels.cpu.delta_statistics import delta_statistics
from apr.kernels.cpu.threads import default_threads
from apr.merge.inputs import ModelInput, layer_of, missing, open_input
from apr.merge.operands import Operands, models_and_base

# Verdicts, by the whole model's mean cosine between deltas and share of conflicting signs. Deltas
# of one task family have cosines of 0.5 and more; independent ones are nearly orthogonal, and half
# of their signs differ (Ilharco et al. 2023, figure 5; Yadav et al. 2023, figure 4).
ALIKE, ORTHOGONAL, MANY_CONFLICTS = 0.5, 0.1, 0.3


@dataclass(frozen=True)
class Group:
    """A layer, or another part of the model. Shares and cosines are fractions.

    change: |delta| / |base| of each model. zeros: share of each delta that is exactly zero.
    cosines, conflicts: of each pair (0, 1), (0, 2), ..., (1, 2), ...; conflicts: share of all
    elements that the two changed in opposite directions; weighted: part of the smaller of the two
    magnitudes that lies there, which is what cancels when they are added.
    """

    name: str
    parameters: int
    change: tuple[float, ...]
    zeros: tuple[float, ...]
    cosines: tuple[float, ...]
    conflicts: tuple[float, ...]
    weighted: tuple[float, ...]

    @property
    def cosine(self) -> float:
        return float(np.mean(self.cosines)) if self.cosines else 1.0

    @property
    def conflict(self) -> float:
        return float(np.mean(self.conflicts)) if self.conflicts else 0.0


@dataclass(frozen=True)
class MergeDiagnosis:
    """models: labels, in order; with a merged model, that is the last one. groups: embeddings,
    layers, the rest, then "attention", "mlp" and "all" over the whole model.
    """

    base: str
    models: tuple[str, ...]
    groups: tuple[Group, ...]
    merged: bool

    @property
    def whole(self) -> Group:
        return self.groups[-1]

    def verdict(self) -> str:
        """One sentence on what to expect."""
        whole = self.whole
        told = f"mean cosine {whole.cosine:.2f}, {100 * whole.conflict:.0f} % conflicting signs: "
        if len(self.models) - self.merged < 2:
            return "one model: nothing to compare"
        still = [m for m, change in zip(self.models, whole.change, strict=True) if change == 0]
        if still:
            return f"{', '.join(still)} changed nothing in {self.base}: nothing to compare"
        if whole.cosine >= ALIKE:
            return told + "the models agree; linear or slerp keeps most of what they learned"
        if whole.cosine < -ORTHOGONAL:
            return told + "the models undo each other; a merge will be near the base"
        if whole.conflict >= MANY_CONFLICTS:
            return told + "averaging cancels much of it; try ties or dare-ties"
        return told + "the models changed different things; task-arithmetic adds them up"

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "models": list(self.models),
            "merged": self.merged,
            "groups": [vars(group) for group in self.groups],
            "verdict": self.verdict(),
        }


class _Sums:
    """What the kernel adds up over the tensors of a group."""

    def __init__(self, models: int) -> None:
        self.count = 0
        self.of_models = np.zeros((models + 1, 2))
        self.of_pairs = np.zeros((models * (models - 1) // 2, 4))

    def add(self, other: _Sums) -> None:
        self.count += other.count
        self.of_models += other.of_models
        self.of_pairs += other.of_pairs

    def group(self, name: str) -> Group:
        models = len(self.of_models) - 1
        norms = np.sqrt(self.of_models[:, 1])
        cosines = []
        for (a, b), sums in zip(combinations(range(models), 2), self.of_pairs, strict=True):
            cosines.append(float(sums[3] / max(norms[a] * norms[b], 1e-300)))
        return Group(
            name,
            self.count,
            tuple((norms[:-1] / max(norms[-1], 1e-300)).tolist()),
            tuple((self.of_models[:-1, 0] / max(self.count, 1)).tolist()),
            tuple(cosines),
            tuple((self.of_pairs[:, 0] / max(self.count, 1)).tolist()),
            tuple((self.of_pairs[:, 1] / np.maximum(self.of_pairs[:, 2], 1e-300)).tolist()),
        )


def diagnose(
    models: Sequence[str],
    base: str,
    merged: str | None = None,
    *,
    threads: int | None = None,
    offline: bool = False,
    progress: bool = True,
) -> MergeDiagnosis:
    """Compare the deltas of models (and of what they were merged to) from their base.

    Raises UsageError and AprError for models that cannot be read or do not fit together.
    """
    if not models:
        raise UsageError("no model to compare", "name the fine-tuned models")
    refs = [*models, *([merged] if merged else [])]
    origin = open_input(base, offline=offline, progress=progress)
    inputs = [open_input(ref, base, offline=offline, progress=progress) for ref in refs]
    names = [name for name in origin.stored if origin.is_float(name)]
    _check(origin, inputs, names)
    total = sum(origin.nbytes(name) for name in names)
    groups: dict[str, _Sums] = {}
    with (
        ByteProgress("comparing", total, progress) as bar,
        ThreadPoolExecutor(
            threads or default_threads(), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        found = pool.map(lambda name: _statistics(name, inputs, origin), names)
        for name, sums in zip(names, found, strict=True):
            for key in _groups_of(name):
                groups.setdefault(key, _Sums(len(inputs))).add(sums)
            bar.advance(origin.nbytes(name))
    last = [key for key in ("attention", "mlp", "all") if key in groups]
    order = [key for key in groups if key not in last] + last
    return MergeDiagnosis(
        origin.label,
        tuple(model.label for model in inputs),
        tuple(groups[key].group(key) for key in order),
        merged is not None,
    )


def _statistics(name: str, inputs: Sequence[ModelInput], base: ModelInput) -> _Sums:
    readers = tuple(model.reader(name) for model in inputs)
    x = Operands(name, base.shape(name), readers, base.reader(name))
    sums = _Sums(len(inputs))
    sums.count = x.count
    for start, end in x.blocks:
        raw, block = models_and_base(x, start, end)
        raw.check(delta_statistics(*block, raw.count, sums.of_models, sums.of_pairs))
    return sums


def _groups_of(name: str) -> list[str]:
    layer = layer_of(name)
    if layer is None:
        own = "embeddings" if "embed" in name else "output"
    else:
        own = f"layer {layer}"
    part = [key for key, mark in (("attention", "attn"), ("mlp", "mlp")) if mark in name]
    return [own, *part, "all"]


def _check(base: ModelInput, inputs: Sequence[ModelInput], names: Sequence[str]) -> None:
    for model in inputs:
        for name in names:
            if name not in model.stored:
                raise missing(model, name)
            if model.shape(name) != base.shape(name):
                raise AprError(
                    f"tensor {name} is {model.shape(name)} in {model.label} and"
                    f" {base.shape(name)} in {base.label}",
                    "models of one architecture and vocabulary are needed",
                )


def plot(diagnosis: MergeDiagnosis, path: str) -> None:
    """Two curves over the layers, cosine and conflicting signs per pair, as a picture.

    Raises UsageError where matplotlib is missing or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("`plot` needs matplotlib", "pip install 'apr[report]'") from None
    layers = [group for group in diagnosis.groups if group.name.startswith("layer ")]
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    numbers = [int(group.name.removeprefix("layer ")) for group in layers]
    for i, label in enumerate(diagnosis.models):
        upper.plot(numbers, [100 * group.change[i] for group in layers], label=label)
    for p, (a, b) in enumerate(combinations(diagnosis.models, 2)):
        middle.plot(numbers, [group.cosines[p] for group in layers], label=f"{a}, {b}")
        lower.plot(numbers, [100 * group.conflicts[p] for group in layers], label=f"{a}, {b}")
    upper.set_ylabel("change, % of base")
    middle.set_ylabel("cosine of deltas")
    lower.set_ylabel("conflicting signs, %")
    lower.set_xlabel("layer")
    upper.set_ylim(bottom=0)
    lowest = min((c for group in layers for c in group.cosines), default=0.0)
    middle.set_ylim(min(-0.2, 1.1 * lowest), 1.05)
    lower.set_ylim(0, 100)
    for axes in (upper, middle, lower):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (ValueError, OSError) as error:
        raise UsageError(f"`plot` {path}: {error}", "e.g. `plot` report.png") from None
