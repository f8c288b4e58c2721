"""The merge methods: pure functions from one tensor of every model to the merged tensor.

A method takes `Operands` and its parameters, one value per model for those a user gives per model
(weight, density, ...), and returns a `Combine` that fills blocks of the result. `merge_tensors`
runs one on tensors in memory. METHODS says what each needs. Arithmetic is fp32; names, parameters
and defaults are MergeKit's, except where MergeKit departs from the paper (docs/merging.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from apr.common.errors import AprError, UsageError
from apr.kernels.cpu import merging
from apr.merge import geometry
from apr.merge.operands import (
    Combine,
    Operands,
    RawBlock,
    check_finite,
    from_fp32,
    gram_matrix,
    in_memory,
    output_arrays,
)
from apr.merge.parameters import (
    COUNT,
    NUMBER,
    POSITIVE,
    PROPER_SHARE,
    REQUIRED,
    SHARE,
    Parameter,
)
from apr.merge.select import belongs, largest, order_statistics
from apr.merge.task_vectors import (
    Consensus,
    RescaleNorm,
    combine_deltas,
    della,
    keep_all,
    keep_largest,
    keep_middle,
    keep_random,
    with_l1_norms,
)


def linear(x: Operands, *, weight: Sequence[float], normalize: bool = True) -> Combine:
    """sum w_m x_m (/ sum w_m): model soups (Wortsman et al. 2022, section 2)."""
    if normalize:
        _refuse_cancelling(weight, "normalize")
    total = sum(weight) if normalize else 1
    return weighted_sum(x, [w / total for w in weight])


def _refuse_cancelling(weight: Sequence[float], key: str) -> None:
    """Nothing can be divided by a sum that is 0 but for rounding."""
    if abs(sum(weight)) <= 1e-7 * sum(map(abs, weight)):
        raise UsageError(f"weights {list(weight)} sum to 0", f"set {key} to false")


def slerp(x: Operands, *, t: float) -> Combine:
    """Along the arc from models[0] (t = 0) to models[1] (t = 1) (Shoemake 1985)."""
    if len(x.models) == 1:
        return weighted_sum(x, [1.0])
    return weighted_sum(x, geometry.slerp_coefficients(gram_matrix(x), t))


def nuslerp(
    x: Operands,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Combine:
    """slerp of two models (of their deltas, with a base) by weights (MergeKit's NuSLERP).

    nuslerp_flatten: each tensor is one vector. Else each row is (nuslerp_row_wise false) or each
    column (true; MergeKit's names).
    """
    if nuslerp_flatten:
        return weighted_sum(x, geometry.nuslerp_coefficients(gram_matrix(x), weight))
    columns = x.count // max(1, x.shape[0] if x.shape else 1)
    by_column = nuslerp_row_wise and len(x.shape) > 1

    def vectors(start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(models, elements) of a block, and the number of the vector each element is in."""
        if x.base is None:
            parts = torch.stack([x.fp32(model, start, end) for model in x.models])
        else:
            parts = x.deltas(start, end)[1]
        place = torch.arange(start, end)
        return parts.flatten(1), place % columns if by_column else place // max(1, x.width)

    grams = torch.zeros(columns if by_column else x.count // max(1, x.width), 2, 2).double()
    for block in x.blocks:
        parts, number = vectors(*block)
        products = torch.einsum("me,ne->emn", parts.double(), parts.double())
        grams.index_add_(0, number, products)
    coefficients = torch.from_numpy(geometry.nuslerp_coefficients(grams.numpy(), weight)).float()

    def merged(start: int, end: int) -> torch.Tensor:
        parts, number = vectors(start, end)
        moved = (parts * coefficients[number].T).sum(0)
        return moved if x.base is None else x.fp32(x.base, start, end).flatten() + moved

    return from_fp32(x, merged)


def multislerp(
    x: Operands, *, weight: Sequence[float], normalize_weights: bool = True, eps: float = 1e-8
) -> Combine:
    """Barycentre of any number of models on a sphere (Goddard's Multi-SLERP)."""
    if len(x.models) == 1:
        return weighted_sum(x, [1.0])
    if normalize_weights:
        _refuse_cancelling(weight, "normalize_weights")
    coefficients = geometry.multislerp_coefficients(gram_matrix(x), weight, normalize_weights, eps)
    if coefficients is None:
        raise AprError(
            f"tensor {x.name}: the weighted directions of the models cancel out",
            "choose other weights",
        )
    return weighted_sum(x, coefficients)


def karcher(x: Operands, *, max_iter: int = 10, tol: float = 1e-5) -> Combine:
    """The Riemannian (Karcher) mean of any number of models on a sphere."""
    return weighted_sum(x, geometry.karcher_coefficients(gram_matrix(x), max_iter, tol))


def passthrough(x: Operands, *, scale: Sequence[float | None]) -> Combine:
    """The only model's tensor, times scale: layers of different models stacked."""
    return weighted_sum(x, [1.0 if scale[0] is None else scale[0]])


def task_arithmetic(
    x: Operands, *, weight: Sequence[float], normalize: bool = False, lambda_: float = 1.0
) -> Combine:
    """base + lambda * sum w_m delta_m (Ilharco et al. 2023, section 2)."""
    keeps = [keep_all() for _ in x.models]
    return combine_deltas(x, weight, keeps, None, normalize, lambda_)


def ties(
    x: Operands,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    consensus: Consensus = "sum",
) -> Combine:
    """Trim each delta to its density * n largest elements, elect a sign per element, average those
    that agree (Yadav et al. 2023, Algorithm 1; tensor by tensor, as MergeKit does).

    consensus: elect by total magnitude ("sum", the paper's) or by number ("count"). rescale: give
    the trimmed deltas back their L1 norm (MergeKit's; not in the paper).
    """
    keeps = keep_largest(x, density)
    if rescale:
        keeps = with_l1_norms(x, keeps)
    return combine_deltas(x, weight, keeps, consensus, normalize, lambda_)


def dare(
    x: Operands,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    rescale_norm: RescaleNorm = "density",
    lambda_: float = 1.0,
    consensus: Consensus | None = None,
) -> Combine:
    """Drop elements of each delta at random, scale up the rest, then add ("dare_linear", consensus
    None) or merge as TIES does ("dare_ties") (Yu et al. 2023, eq. 3).

    rescale_norm: "density" scales by 1 / density, the paper's 1 / (1 - p), which keeps the
    expectation; "l1" restores the L1 norm of each tensor's delta, as MergeKit does.
    """
    keeps = [keep_random(p, rescale and rescale_norm == "density") for p in density]
    if rescale and rescale_norm == "l1":
        keeps = with_l1_norms(x, keeps)
    return combine_deltas(x, weight, keeps, consensus, normalize, lambda_)


def dare_ties(x: Operands, **parameters: Any) -> Combine:
    """`dare` with TIES' sign election."""
    return dare(x, **{"consensus": "sum", **parameters})


def breadcrumbs(
    x: Operands,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    consensus: Consensus | None = None,
    zero_small_tensors: bool = False,
) -> Combine:
    """Remove the gamma * n largest elements of each delta and so many of the smallest that
    density * n stay (Davari & Belilovsky 2024, section 3).

    zero_small_tensors: drop the whole delta where gamma * n < 1, as MergeKit does.
    """
    keeps = keep_middle(x, density, gamma, zero_small_tensors)
    if rescale:
        keeps = with_l1_norms(x, keeps)
    return combine_deltas(x, weight, keeps, consensus, normalize, lambda_)


def breadcrumbs_ties(x: Operands, **parameters: Any) -> Combine:
    """`breadcrumbs` with TIES' sign election."""
    return breadcrumbs(x, **{"consensus": "sum", **parameters})


def della_linear(
    x: Operands,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool = False,
    rescale: bool = True,
    rescale_norm: RescaleNorm = "density",
    lambda_: float = 1.0,
    consensus: Consensus | None = None,
) -> Combine:
    """Drop elements at random, small ones of a row more often (DELLA, Deep et al. 2024).

    rescale_norm: "density" scales each element by 1 / its probability (the paper, eq. 3), "l1"
    restores the L1 norm of each tensor's delta (MergeKit).
    """
    norm = rescale_norm if rescale else None
    return della(x, weight, density, epsilon, consensus, normalize, lambda_, norm)


def della_ties(x: Operands, **parameters: Any) -> Combine:
    """DELLA in full: `della_linear` with TIES' election and mean."""
    return della_linear(x, **{"consensus": "sum", "normalize": True, **parameters})


def model_stock(x: Operands, *, filter_wise: bool = False) -> Combine:
    """base + t * mean delta, t from the angle between the deltas (Jang et al. 2024, eq. 7).

    filter_wise: an angle for each row.
    """
    count = len(x.models)
    if not filter_wise:
        t = geometry.model_stock_ratio(gram_matrix(x))
        return weighted_sum(x, [t / count] * count)

    def block(start: int, end: int) -> torch.Tensor:
        base, deltas = x.deltas(start, end)
        grams = torch.einsum("mrw,nrw->rmn", deltas.double(), deltas.double()).numpy()
        t = torch.tensor([geometry.model_stock_ratio(gram) for gram in grams])
        return base + t.float()[:, None] * deltas.mean(0)

    return from_fp32(x, block)


def sce(x: Operands, *, select_topk: float = 1.0) -> Combine:
    """Select the elements whose deltas vary most, weight models by the energy of what is left,
    erase minority signs (SCE, Wan et al. 2024, section 3.2).
    """

    def variance(start: int, end: int) -> torch.Tensor:
        return x.deltas(start, end)[1].var(0, unbiased=False)

    selected = None
    if select_topk < 1:
        nonzero = sum(int(torch.count_nonzero(variance(*block))) for block in x.blocks)
        selected = largest(variance, x.blocks, int(nonzero * select_topk))

    def chosen(start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        base, deltas = x.deltas(start, end)
        if selected is not None:
            deltas = deltas * belongs(variance(start, end), selected, start)
        return base, deltas

    energy = torch.zeros(len(x.models), dtype=torch.float64)
    for block in x.blocks:
        energy += chosen(*block)[1].double().pow(2).sum((1, 2))
    energy /= x.count
    total = float(energy.sum())
    share = energy / total if total >= 1e-6 else torch.full_like(energy, 1 / len(energy))

    def merged(start: int, end: int) -> torch.Tensor:
        base, deltas = chosen(start, end)
        elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
        weights = share.float()[:, None, None] * (deltas.sign() == elected)
        return base + (deltas * weights).sum(0) / weights.sum(0).clamp(min=1e-6)

    return from_fp32(x, merged)


def arcee_fusion(x: Operands) -> Combine:
    """Take over the deltas whose importance is far out (median + 1.5 IQR of |delta| times the KL
    divergence between the softmax of the two rows), of one model. Quantiles are exact; MergeKit
    samples a million elements of larger tensors.
    """

    def importance(start: int, end: int) -> torch.Tensor:
        assert x.base is not None
        base, model = x.fp32(x.base, start, end), x.fp32(x.models[0], start, end)
        p, q = model.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
        divergence = (p * torch.log(p / q)).sum(-1, keepdim=True)
        # fp32 can leave it a hair below zero; sizes are not negative.
        return ((model - base).abs() * divergence).clamp(min=0)

    places = [int(q * (x.count - 1)) for q in (0.25, 0.5, 0.75)]
    first, median, third = order_statistics(importance, x.blocks, places)
    threshold = median + 1.5 * (third - first)

    def merged(start: int, end: int) -> torch.Tensor:
        base, deltas = x.deltas(start, end)
        return base + deltas[0] * (importance(start, end) >= threshold)

    return from_fp32(x, merged)


def nearswap(x: Operands, *, t: float) -> Combine:
    """Move each element of the base towards the model by at most t (MergeKit's NearSwap)."""

    def merged(start: int, end: int) -> torch.Tensor:
        base, deltas = x.deltas(start, end)
        share = (t / deltas[0].abs().clamp(min=1e-6)).clamp(0, 1)
        return base + share * deltas[0]

    return from_fp32(x, merged)


def weighted_sum(x: Operands, coefficients: Sequence[float] | np.ndarray) -> Combine:
    """sum of coefficients[m] * model m; with a base, base + sum of coefficients[m] * delta m."""
    c = np.asarray(coefficients, np.float64)
    if x.base is not None:
        return combine_deltas(x, c, [keep_all() for _ in x.models])
    total, single = np.float32(c.sum()), c.astype(np.float32)

    def combine(start: int, end: int, out: torch.Tensor) -> None:
        raw = RawBlock(x, x.models, start, end)
        bad = merging.combine(
            raw.addresses, raw.kinds, single, total, *output_arrays(out), raw.count
        )
        raw.check(bad)

    return combine


# -- what each method needs ----------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """base: "origin" (deltas are taken from it), "optional" (the same, may be missing), "member"
    (one of the models; the first, for slerp) or "donor" (gives configuration and tokenizer only).
    per_model, settings: the parameters. models: least and most, without an origin.
    """

    function: Callable[..., Combine]
    base: Literal["origin", "optional", "member", "donor"]
    per_model: Mapping[str, Parameter] = field(default_factory=dict)
    settings: Mapping[str, Parameter] = field(default_factory=dict)
    models: tuple[int, int | None] = (1, None)


_NO, _YES = Parameter(bool, False), Parameter(bool, True)
_WEIGHT = {"weight": Parameter(NUMBER)}
_SPARSE = {**_WEIGHT, "density": Parameter(SHARE, 1.0)}
_DELTAS = {"normalize": _NO, "lambda": Parameter(NUMBER, 1.0)}
_SUM = {"consensus": Parameter(Consensus, "sum")}
_RANDOM = {**_DELTAS, "rescale": _YES, "rescale_norm": Parameter(RescaleNorm, "density")}
_OUTLIERS = {**_SPARSE, "gamma": Parameter(PROPER_SHARE, 0.01)}
_CRUMBS = {**_DELTAS, "rescale": _NO, "zero_small_tensors": _NO}
_DELLA = {**_SPARSE, "epsilon": Parameter(PROPER_SHARE, 0.15)}

METHODS: dict[str, Method] = {
    "linear": Method(linear, "donor", _WEIGHT, {"normalize": _YES}),
    "slerp": Method(slerp, "member", {}, {"t": Parameter(NUMBER)}, (1, 2)),
    "nuslerp": Method(
        nuslerp, "optional", _WEIGHT, {"nuslerp_flatten": _YES, "nuslerp_row_wise": _NO}, (2, 2)
    ),
    "multislerp": Method(
        multislerp,
        "optional",
        _WEIGHT,
        {"normalize_weights": _YES, "eps": Parameter(POSITIVE, 1e-8)},
    ),
    "karcher": Method(
        karcher,
        "member",
        {},
        {"max_iter": Parameter(COUNT, 10), "tol": Parameter(POSITIVE, 1e-5)},
    ),
    "passthrough": Method(
        passthrough, "donor", {"scale": Parameter(NUMBER | None, None)}, {}, (1, 1)
    ),
    "task_arithmetic": Method(task_arithmetic, "origin", _WEIGHT, _DELTAS),
    "ties": Method(ties, "origin", _SPARSE, {**_DELTAS, "normalize": _YES, "rescale": _NO, **_SUM}),
    "dare_linear": Method(dare, "origin", _SPARSE, _RANDOM),
    "dare_ties": Method(dare_ties, "origin", _SPARSE, {**_RANDOM, **_SUM}),
    "breadcrumbs": Method(breadcrumbs, "origin", _OUTLIERS, _CRUMBS),
    "breadcrumbs_ties": Method(breadcrumbs_ties, "origin", _OUTLIERS, {**_CRUMBS, **_SUM}),
    "della": Method(della_ties, "origin", _DELLA, {**_RANDOM, "normalize": _YES, **_SUM}),
    "della_linear": Method(della_linear, "origin", _DELLA, _RANDOM),
    "model_stock": Method(model_stock, "origin", {}, {"filter_wise": _NO}, (2, None)),
    "sce": Method(sce, "origin", {}, {"select_topk": Parameter(SHARE, 1.0)}),
    "arcee_fusion": Method(arcee_fusion, "origin", {}, {}, (1, 1)),
    "nearswap": Method(nearswap, "origin", {}, {"t": Parameter(NUMBER)}, (1, 1)),
}
ALIASES = {"average": "linear", "soup": "linear", "stock": "model_stock"}


def method_named(name: str) -> tuple[str, Method]:
    """(MergeKit's name, method) for a name with dashes or underscores. Raises UsageError."""
    key = name.replace("-", "_").lower()
    key = ALIASES.get(key, key)
    if key not in METHODS:
        known = ", ".join(sorted(known.replace("_", "-") for known in METHODS))
        raise UsageError(f"merge method {name!r} is unknown", f"one of {known}")
    return key, METHODS[key]


def start(method: Method, x: Operands, parameters: Mapping[str, Any]) -> Combine:
    """Look at all blocks as the method needs, with parameters by their YAML names."""
    if not x.models and x.base is not None:
        return combine_deltas(x, [], [])
    renamed = {("lambda_" if key == "lambda" else key): v for key, v in parameters.items()}
    return method.function(x, **renamed)


def merge_tensors(
    method: str,
    models: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    name: str = "tensor",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **parameters: Any,
) -> torch.Tensor:
    """One merged tensor in memory.

    models, base: of one shape; bf16, fp16 or fp32. Parameters per model are sequences. name and
    seed key random masks. dtype: of the result; None for that of the base or first model.
    Raises UsageError for a method or parameter that is unknown or missing, AprError for a result
    that is not finite.
    """
    _, entry = method_named(method)
    known = {**entry.per_model, **entry.settings}
    for key in parameters:
        if key.rstrip("_") not in known:
            raise UsageError(f"{method} has no parameter {key!r}", f"it has {', '.join(known)}")
    given = {key.rstrip("_"): value for key, value in parameters.items()}
    full: dict[str, Any] = {}
    for key, parameter in known.items():
        per_model = key in entry.per_model
        if key not in given and parameter.default is REQUIRED:
            raise UsageError(f"{method} needs the parameter {key!r}")
        value = given.get(
            key, [parameter.default] * len(models) if per_model else parameter.default
        )
        values = [parameter.read(v, key, method) for v in (value if per_model else [value])]
        full[key] = values if per_model else values[0]
    readers = tuple(in_memory(model, f"model {i}") for i, model in enumerate(models))
    origin = in_memory(base, "base") if base is not None else None
    shape = tuple((base if base is not None else models[0]).shape)
    x = Operands(name, shape, readers, origin, seed)
    like = base if base is not None else models[0]
    out = torch.empty(x.count, dtype=dtype or like.dtype)
    combine = start(entry, x, full)
    for first, last in x.blocks:
        combine(first, last, out[first:last])
    check_finite(out, name)
    return out.view(shape)
