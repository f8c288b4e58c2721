"""Properties of the merge methods, and closed forms. MergeKit's numbers are in test_mergekit.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apr.common.errors import AprError, UsageError
from apr.kernels.cpu import merging
from apr.merge.methods import METHODS, merge_tensors, start
from apr.merge.operands import Operands, in_memory
from apr.merge.select import Threshold, belongs
from apr.merge.task_vectors import Keep, keep_middle, keep_random, merge_fp32

PER_MODEL = {"weight": [0.5, 0.3, 0.4], "density": [0.4, 0.6, 0.5], "gamma": [0.05, 0.02, 0.1],
             "epsilon": [0.1, 0.2, 0.05], "scale": [0.7, 1.0, 1.0]}  # fmt: skip


def mask_of(x: Operands, model: int, keep: Keep) -> torch.Tensor:
    """The elements of a delta that are kept, as booleans of the tensor's shape."""
    if keep.mode == merging.KEEP_ALL:
        return torch.ones(x.shape, dtype=torch.bool)
    parts = []
    for first, last in x.blocks:
        if keep.mode == merging.KEEP_RANDOM:
            words = np.empty(last - first, np.uint32)
            merging.random_words(x.key(model), first, words)
            parts.append(torch.from_numpy(words.astype(np.int64)) < int(keep.numbers[0]))
            continue
        assert x.base is not None
        size = (x.models[model](first, last).float() - x.base(first, last).float()).abs()
        least, least_cut, most, most_cut = keep.numbers
        inside = belongs(size, Threshold(least, int(least_cut)), first)
        parts.append(inside & ~belongs(size, Threshold(most, int(most_cut)), first))
    return torch.cat(parts).view(x.shape)


def tensors(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (60, 48)) -> Any:
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=generator)
    models = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(3)]
    return [model.to(dtype) for model in models], base.to(dtype)


def parameters(method: str) -> dict[str, Any]:
    entry = METHODS[method]
    count = entry.models[1] or 3
    found: dict[str, Any] = {key: PER_MODEL[key][:count] for key in entry.per_model}
    return {**found, **({"t": 0.3} if "t" in entry.settings else {})}


def merged(method: str, models: list[torch.Tensor], base: torch.Tensor, **more: Any) -> Any:
    entry = METHODS[method]
    origin = base if entry.base in ("origin", "optional") else None
    return merge_tensors(
        method, models[: entry.models[1]], origin, **{**parameters(method), **more}
    )


@pytest.mark.parametrize("method", METHODS)
def test_blocks_do_not_change_a_result(method: str) -> None:
    models, base = tensors()
    entry = METHODS[method]
    readers = tuple(in_memory(m) for m in models[: entry.models[1]])
    origin = in_memory(base) if entry.base in ("origin", "optional") else None
    full = {**{k: v.default for k, v in entry.settings.items() if k != "t"}, **parameters(method)}
    found = []
    for block in (48, 500, 1 << 20):
        x = Operands("x", (60, 48), readers, origin, block_elements=block)
        out = torch.empty(x.count)
        combine = start(entry, x, full)
        for first, last in x.blocks:
            combine(first, last, out[first:last])
        found.append(out)
    # Sums over the tensor are taken block by block, so their last digits may differ.
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-7)


# nearswap and the random ones move by design; passthrough scales.
SAME = [m for m in METHODS if not m.startswith(("dare", "della")) and m != "passthrough"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", SAME)
def test_merging_a_model_with_itself_changes_nothing(method: str, dtype: torch.dtype) -> None:
    (model, *_), _ = tensors(dtype)
    out = merged(method, [model.clone() for _ in range(3)], model)
    if method in ("multislerp", "karcher"):  # through angles and lengths
        torch.testing.assert_close(
            out, model, rtol=2e-6 if dtype is torch.float32 else 1e-2, atol=0
        )
    else:
        assert torch.equal(out, model)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "model_stock", "karcher",
                                    "multislerp", "sce", "breadcrumbs_ties"])  # fmt: skip
def test_the_order_of_models_does_not_matter(method: str) -> None:
    models, base = tensors()
    order = [2, 0, 1]
    given = {key: [values[i] for i in order] for key, values in PER_MODEL.items()
             if key in METHODS[method].per_model}  # fmt: skip
    one = merged(method, models, base)
    other = merged(method, [models[i] for i in order], base, **given)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_slerp_goes_along_the_arc() -> None:
    generator = torch.Generator().manual_seed(6)
    a, b = (
        torch.nn.functional.normalize(torch.randn(500, generator=generator), dim=0) for _ in "ab"
    )
    assert torch.equal(merge_tensors("slerp", [a, b], t=0.0), a)
    torch.testing.assert_close(merge_tensors("slerp", [a, b], t=1.0), b)
    whole = torch.arccos(a @ b)
    for t in (0.2, 0.5, 0.9):
        point = merge_tensors("slerp", [a, b], t=t)
        torch.testing.assert_close(point.norm(), torch.tensor(1.0), rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.arccos(a @ point), t * whole, rtol=1e-3, atol=0)


def test_slerp_keeps_norms_where_the_mean_does_not() -> None:
    """Of unrelated weights, half as long again is lost by averaging."""
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randn(200, 100, generator=generator) for _ in "ab")
    length = a.norm()
    assert abs(merge_tensors("slerp", [a, b], t=0.5).norm() / length - 1) < 0.05
    assert merge_tensors("linear", [a, b], weight=[1, 1]).norm() / length < 0.75


def test_ties_on_paper() -> None:
    """Trim to two of four, elect by total magnitude, average those that agree."""
    base = torch.zeros(4)
    one = torch.tensor([3.0, -1.0, 0.5, 2.0])  # keeps 3, 2
    two = torch.tensor([-1.0, 4.0, -2.0, 0.1])  # keeps 4, -2
    three = torch.tensor([1.0, -3.0, 0.0, 6.0])  # keeps -3, 6
    given = {"weight": [1, 1, 1], "density": [0.5] * 3}
    out = merge_tensors("ties", [one, two, three], base, **given)
    assert out.tolist() == [3.0, 4.0, -2.0, 4.0]
    scaled = merge_tensors("ties", [one, two, three], base, lambda_=0.5, **given)
    assert scaled.tolist() == [1.5, 2.0, -1.0, 2.0]
    # By number, -3 and 4 tie at the second place, which goes to +.
    counted = merge_tensors("ties", [one, two, three], base, consensus="count", **given)
    assert counted.tolist() == [3.0, 4.0, -2.0, 4.0]
    four = [*(torch.tensor([v]) for v in (5.0, -1.0, -1.0))]
    by_count = merge_tensors("ties", four, torch.zeros(1), weight=[1] * 3, density=[1] * 3,
                             consensus="count")  # fmt: skip
    assert by_count.item() == -1.0


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_density_is_exact(density: float, dtype: torch.dtype) -> None:
    models, base = tensors(dtype, (300, 70))
    out = merge_tensors("ties", models[:1], base.float(), weight=[1], density=[density])
    changed = (models[0] != base).sum()  # of bf16 models, some deltas are zero
    kept = (out != base.float()).sum()
    assert kept == min(int(density * base.numel()), changed)


@pytest.mark.parametrize("shape", [(7,), (64, 64)])
def test_breadcrumbs_removes_both_ends(shape: tuple[int, ...]) -> None:
    models, base = tensors(shape=shape)
    x = Operands("x", shape, (in_memory(models[0]),), in_memory(base))
    size = (models[0] - base).abs().flatten().sort(descending=True).values
    (keep,) = keep_middle(x, [0.6], [0.1], False)
    mask = mask_of(x, 0, keep)
    top = int(0.1 * x.count)
    assert mask.sum() == int(0.6 * x.count)
    assert (models[0] - base).abs()[mask].max() == size[top]
    (keep,) = keep_middle(x, [0.6], [0.1], True)
    assert mask_of(x, 0, keep).sum() == (0 if top == 0 else int(0.6 * x.count))


def test_dare_keeps_the_expectation() -> None:
    """1 / density (eq. 3), not a norm: over many masks the mean is the delta."""
    delta = torch.linspace(-2, 3, 400)
    total = torch.zeros_like(delta)
    for seed in range(3000):
        total += merge_tensors("dare_linear", [delta], torch.zeros(400), seed=seed, weight=[1],
                               density=[0.3])  # fmt: skip
    error = (total / 3000 - delta).abs() / delta.abs().clamp(min=0.1)
    # The standard error of a mean of 3000 is 0.028 of the delta; five of them hold for 400 places.
    assert error.max() < 5 * (0.7 / 0.3 / 3000) ** 0.5


def test_dare_l1_keeps_the_norm() -> None:
    models, base = tensors()
    out = merge_tensors("dare_linear", models[:1], base, weight=[1], density=[0.2],
                        rescale_norm="l1")  # fmt: skip
    torch.testing.assert_close((out - base).abs().sum(), (models[0] - base).abs().sum(), rtol=1e-4,
                               atol=0)  # fmt: skip


def test_masks_depend_on_seed_name_and_place_only() -> None:
    def words(seed: int, name: str, model: int, first: int, count: int) -> np.ndarray:
        out = np.empty(count, np.uint32)
        key = Operands(name, (count,), (), seed=seed).key(model)
        merging.random_words(key, first, out)
        return out

    whole = words(1, "a", 0, 0, 10000)
    assert np.array_equal(whole[3000:7777], words(1, "a", 0, 3000, 4777))
    for other in (
        words(2, "a", 0, 0, 10000),
        words(1, "b", 0, 0, 10000),
        words(1, "a", 1, 0, 10000),
    ):
        agree = ((whole < 2**31) == (other < 2**31)).mean()
        assert abs(agree - 0.5) < 0.025  # five standard errors
    beyond = words(1, "a", 0, 2**32 - 5, 10)
    assert not np.array_equal(beyond[5:], whole[:5])


def test_random_words_are_uniform() -> None:
    """Chi-square of 256 bins over 2^20 consecutive counters, for the upper and the lower byte, and
    of pairs of neighbours; 5 sigma either way.
    """
    out = np.empty(1 << 20, np.uint32)
    merging.random_words(np.uint64(0x1234567890ABCDEF), 0, out)
    pairs = (out[:-1] >> 28) * 16 + (out[1:] >> 28)
    for sample in (out >> 24, out & 255, pairs):
        counts = np.bincount(sample, minlength=256)
        expected = len(sample) / 256
        chi = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi - 255) < 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("consensus", [None, "sum", "count"])
def test_the_kernel_equals_torch(dtype: torch.dtype, consensus: Any) -> None:
    """Compiled code against the same formula on tensors, inputs of mixed types."""
    models, base = tensors(shape=(130, 77))
    models = [models[0].to(dtype), models[1].bfloat16(), models[2]]
    x = Operands("x", (130, 77), tuple(map(in_memory, models)), in_memory(base.to(dtype)))
    keeps = [keep_random(0.5, True) for _ in models]
    from apr.merge.task_vectors import combine_deltas

    out = torch.empty(x.count)
    combine_deltas(x, [0.4, -0.3, 0.8], keeps, consensus, True, 0.9)(0, x.count, out)
    masks = torch.stack([mask_of(x, m, keeps[m]) for m in range(3)])
    plain = base.to(dtype).float()
    deltas = (torch.stack([m.float() for m in models]) - plain) * masks * 2
    expected = merge_fp32(plain, deltas, [0.4, -0.3, 0.8], consensus, True, 0.9)
    torch.testing.assert_close(out.view(130, 77), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_named(method: str, bad: float) -> None:
    models, base = tensors()
    models[0][17, 3] = bad
    with pytest.raises(AprError, match="model 0: tensor blk holds NaN or infinity"):
        merged(method, models, base, name="blk")


def test_parameters_are_checked() -> None:
    models, base = tensors()
    with pytest.raises(UsageError, match="'densty'"):
        merge_tensors("ties", models, base, weight=[1] * 3, densty=0.5)
    with pytest.raises(UsageError, match="'weight'"):
        merge_tensors("ties", models, base)
    with pytest.raises(UsageError, match="unknown"):
        merge_tensors("soup-of-the-day", models, base)
    with pytest.raises(UsageError, match="sum to 0"):
        merge_tensors("linear", models[:2], weight=[1, -1])
    with pytest.raises(UsageError, match="epsilon"):
        merge_tensors("della", models[:1], base, weight=[1], density=[0.1], epsilon=[0.2])
    with pytest.raises(UsageError, match="sum to 0"):
        merge_tensors("multislerp", models, weight=[0.3, -0.1, -0.2])


CANCELLING = [[0.3, -0.1, -0.2], [0.7, -0.4, -0.3], [1.1, -0.4, -0.7], [0, 0, 0]]


@pytest.mark.parametrize("weight", CANCELLING)
@pytest.mark.parametrize("method", [m for m, e in METHODS.items() if "normalize" in e.settings])
def test_weights_that_cancel_do_not_blow_up_a_model(method: str, weight: list[float]) -> None:
    """Their sum is 0 but for rounding, by which nothing is divided."""
    models, base = tensors()
    try:
        out = merged(method, models, base, weight=weight, normalize=True)
    except UsageError as error:
        assert method == "linear" and "sum to 0" in str(error)
        return
    assert (out - base).abs().max() < 10  # not a million


DEGENERATE = [
    "equal",
    "frozen",
    "zeros",
    "opposite",
    "row of zeros",
    "tiny",
    "one",
    "scalar",
    "none",
]


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("method", METHODS)
def test_degenerate_tensors_have_a_finite_merge(method: str, case: str) -> None:
    models, base = tensors(shape=(6, 8))
    a, b, c = models
    cases = {
        "equal": ([a, a, a], a),
        "frozen": ([base, base, base], base),
        "zeros": ([0 * a, 0 * a, 0 * a], 0 * a),
        "opposite": ([a, -a, a], 0 * a),
        "row of zeros": ([torch.cat([0 * a[:1], a[1:]]), b, c], base),
        "tiny": ([1e-40 * a, 1e-40 * b, 1e-40 * c], 1e-40 * base),
        "one": ([a[0, :1], b[0, :1], c[0, :1]], base[0, :1]),
        "scalar": ([a[0, 0], b[0, 0], c[0, 0]], base[0, 0]),
        "none": ([a[:0], b[:0], c[:0]], base[:0]),
    }
    models, base = cases[case]
    forms: list[dict[str, Any]] = [{}]
    if method == "nuslerp":
        forms += [{"nuslerp_flatten": False, "nuslerp_row_wise": by} for by in (False, True)]
    for form in forms:
        out = merged(method, models, base, **form)
        assert out.shape == base.shape and torch.isfinite(out).all()
        assert out.numel() == 0 or out.abs().max() < 10


@pytest.mark.parametrize("method", METHODS)
def test_no_result_holds_nan(method: str) -> None:
    """Numbers that fp32 cannot multiply: a finite merge, or an error that names the tensor."""
    models, base = tensors()
    try:
        out = merged(method, [1e25 * m for m in models], 1e25 * base, name="blk")
    except AprError as error:
        assert "tensor blk would hold NaN" in str(error)
    else:
        assert torch.isfinite(out).all()


def test_directions_that_cancel_name_the_tensor() -> None:
    models, _ = tensors()
    a = models[0]
    with pytest.raises(AprError, match="tensor blk: the weighted directions"):
        merge_tensors("multislerp", [a, -a, a, -a], weight=[1] * 4, name="blk")
    with pytest.raises(AprError, match="tensor blk would hold NaN"):
        merge_tensors("linear", [1e30 * a, a], weight=[1e30, 1], normalize=False, name="blk")


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5)])
def test_nuslerp_of_single_vectors(shape: tuple[int, ...], by_column: bool) -> None:
    models, _ = tensors(shape=shape)
    out = merge_tensors(
        "nuslerp",
        models[:2],
        weight=[0.7, 0.4],
        nuslerp_flatten=False,
        nuslerp_row_wise=by_column,
    )
    first, second = (m.movedim(0, -1) if by_column else m for m in models[:2])
    rows = [m.reshape(-1, first.shape[-1]) for m in (first, second)]
    whole = [
        merge_tensors("nuslerp", list(pair), weight=[0.7, 0.4]) for pair in zip(*rows, strict=True)
    ]
    expected = torch.stack(whole).view(first.shape)
    torch.testing.assert_close(out.movedim(0, -1) if by_column else out, expected)
